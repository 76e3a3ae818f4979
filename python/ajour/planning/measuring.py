"""One layer's candidates built, checked against the float64 oracle and timed against dense, side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import linear

from ajour import huge_pages
from ajour.formats.dense import DenseMatrix
from ajour.ops import DENSE_LINEAR
from ajour.ops.prepare import packed_form, prepare
from ajour.planning.candidates import Candidate
from ajour.planning.choosing import Decision, Timed, Times
from ajour.planning.correctness import Oracle
from ajour.planning.plan import DENSE_KERNELS, RowChoice, serving
from ajour.planning.timing import Side, Timer, Timing, copies_needed, measure
from ajour.terms.errors import AjourError
from ajour.terms.pattern import Dense
from ajour.terms.problem import Problem

TWIN_MULTIPLICATIONS = 3e7  # in float64, for a weight whose twin was checked in full
FAILURES = (AjourError, RuntimeError, NotImplementedError)  # what a kernel that does not work here may raise


@dataclass(frozen=True)
class Subject:
    """A weight to measure: w [n, k], bias [n] or None; transposed: it runs today as a [k, n] weight (Conv1D)."""

    name: str
    w: Tensor
    bias: Tensor | None
    transposed: bool = False

    @property
    def nbytes(self) -> int:
        """Bytes of the dense weight."""
        return self.w.numel() * self.w.element_size()

    def inputs(self, m: int) -> Tensor:
        """Random normal x: [m, k], the same in every run; torch's own random state is not touched."""
        generator = torch.Generator(self.w.device).manual_seed(m)
        return torch.randn(m, self.w.shape[1], generator=generator, device=self.w.device).to(self.w.dtype)


@dataclass
class Built:
    """A candidate's packed tensors and the row table of a call."""

    candidate: Candidate
    packed: list[Tensor]
    table: str

    @property
    def nbytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in self.packed)

    def run(self, x: Tensor, bias: Tensor | None, packed: list[Tensor] | None = None) -> Tensor:
        """y = x @ w.T + bias through the op."""
        y: Tensor = self.candidate.form.op.call(x, packed or self.packed, bias, self.table, "none", None)
        return y


@dataclass
class Bench:
    """Measures subjects on one device.

    model_bytes: of all the dense weights of the model, and cache: the device's last level; both say how cold a layer's
    weights are when it is met again. told: called with what is being measured. notes: what a reader should know.
    """

    timer: Timer
    model_bytes: int
    cache: int
    told: Callable[[str], None] = lambda text: None
    notes: dict[str, None] = field(default_factory=dict)

    def times(self, subject: Subject, rows: Sequence[int], built: Sequence[Built]) -> Times:
        """All of `built` beside dense at each number of rows; a wrong or failing candidate is left out and noted."""
        today: dict[int, Timing] = {}
        dense: dict[int, dict[str, Timing]] = {}
        found: dict[int, dict[int, Timing]] = {i: {} for i in range(len(built))}
        weights = copies([subject.w], self._count(subject, subject.nbytes))
        packs: dict[int, list[list[Tensor]]] = {}  # by the packed form, which several configurations may share
        for m in rows:
            self.told(f"{subject.name} at {m} rows")
            x = subject.inputs(m)
            oracle = Oracle.of(x, subject.w, subject.bias)
            right = [
                i for i, each in enumerate(built) if m in each.candidate.rows and self._right(subject, each, x, oracle)
            ]
            sides = dense_sides(x, [held[0] for held in weights], subject.bias, subject.transposed)
            others = len(sides)
            timed = []
            for i in right:
                form = id(built[i].packed[0])
                if form not in packs:
                    packs[form] = copies(built[i].packed, self._count(subject, built[i].nbytes))
                side = sparse_side(built[i], x, subject.bias, packs[form])
                if self._timeable(subject, side, m):
                    sides.append(side)
                    timed.append(i)
            timings = measure(sides, self.timer)
            today[m] = timings[0]
            dense[m] = {side.name: t for side, t in zip(sides[1:others], timings[1:others], strict=True)}
            for i, timing in zip(timed, timings[others:], strict=True):
                found[i][m] = timing
        return Times(today, dense, tuple(_timed(built[i], times) for i, times in found.items() if times))

    def _right(self, subject: Subject, built: Built, x: Tensor, oracle: Oracle) -> bool:
        reason = why_wrong(built, x, subject.bias, oracle)
        if reason:
            self.notes[f"{subject.name}: {reason}"] = None
        return reason is None

    def _timeable(self, subject: Subject, side: Side, m: int) -> bool:
        """Whether the clock can time it; a kernel that can't be captured in a CUDA graph is out."""
        try:
            self.timer(side, 0, 1)
        except FAILURES as error:
            self.notes[f"{subject.name}: {side.name} can't be timed at {m} rows and is out: {error}"] = None
            return False
        return True

    def _count(self, subject: Subject, nbytes: int) -> int:
        count, capped = copies_needed(nbytes, subject.nbytes, self.model_bytes, self.cache)
        if capped:
            self.notes["weights were measured less cold than the model's: their copies would not fit the limit"] = None
        return count


def copies(tensors: Sequence[Tensor], count: int) -> list[list[Tensor]]:
    """The tensors and count - 1 copies of them, in memory of the same kind."""
    first = [t.contiguous() for t in tensors]
    return [first, *([huge_pages.copy(t) for t in first] for _ in range(count - 1))]


def sparse_side(built: Built, x: Tensor, bias: Tensor | None, packs: Sequence[list[Tensor]]) -> Side:
    """A sparse candidate that walks through copies of its packed tensors."""
    return Side(built.candidate.kernel, [partial(built.run, x, bias, packed) for packed in packs])


def dense_sides(x: Tensor, weights: Sequence[Tensor], bias: Tensor | None, transposed: bool = False) -> list[Side]:
    """torch's own linear first (transposed: as Conv1D runs it), then the other dense kernels that take the problem."""
    if transposed:
        sides = [Side("aten", [partial(_transposed, x, w, bias) for w in (w.t().contiguous() for w in weights)])]
    else:
        sides = [Side("aten", [partial(linear, x, w, bias) for w in weights])]
    n, k = weights[0].shape
    dtype = str(x.dtype).removeprefix("torch.")
    problem = Problem(DENSE_LINEAR.name, Dense(), x.shape[0], n, k, dtype, x.device.type)
    for name, kernel in DENSE_LINEAR.kernels.items():
        if name in ("aten", "reference") or kernel.why_not(problem):
            continue
        _, table = prepare(DENSE_LINEAR, DenseMatrix.from_dense(weights[0]), [(None, name, "")])
        sides.append(Side(name, [partial(DENSE_LINEAR.call, x, [w], bias, table, "none") for w in weights]))
    return sides


def _transposed(x: Tensor, w: Tensor, bias: Tensor | None) -> Tensor:
    """As Conv1D computes it, w: [k, n]."""
    return x @ w if bias is None else torch.addmm(bias, x, w)


def _timed(built: Built, times: dict[int, Timing]) -> Timed:
    candidate = built.candidate
    kernel = candidate.form.op.kernel(candidate.kernel)
    packing = " ".join(packed_form(kernel, candidate.config)).rstrip()
    op = candidate.form.op.name
    return Timed(op, candidate.form.pattern, candidate.kernel, candidate.config, packing, built.nbytes, times)


def build(w: Tensor, candidates: Sequence[Candidate], refuse: Callable[[str], None]) -> list[Built]:
    """Packs w for every candidate, sharing what candidates share; what does not fit or work is refused."""
    built = []
    for form in dict.fromkeys(candidate.form for candidate in candidates):
        try:
            matrix = form.op.matrix.from_dense(w, form.pattern)
        except FAILURES as error:
            refuse(f"{form}: {error}")
            continue
        known: dict[tuple[str, str], list[Tensor]] = {}
        for candidate in candidates:
            if candidate.form != form:
                continue
            try:
                packed, table = prepare(form.op, matrix, [(None, candidate.kernel, candidate.config)], known)
            except FAILURES as error:
                refuse(f"{form}, {candidate.kernel}: {error}")
                continue
            built.append(Built(candidate, packed, table))
    return built


def refute(
    subject: Subject, decision: Decision, rows: Sequence[int], candidates: Sequence[Candidate]
) -> tuple[RowChoice, str] | None:
    """The first chosen sparse kernel that gives no right answer for this weight, and why; None if all do."""
    chosen = [
        c
        for c in candidates
        if (c.form.op.name, c.form.pattern) == (decision.op, decision.stored)
        and any((c.kernel, c.config) == (entry.kernel, entry.config) for entry in decision.kernels)
    ]
    refused: list[str] = []
    built = {(b.candidate.kernel, b.candidate.config): b for b in build(subject.w, chosen, refused.append)}
    for m in rows:
        entry = serving(decision.kernels, m)
        if entry is None or entry.kernel in DENSE_KERNELS:
            continue
        mine = built.get((entry.kernel, entry.config))
        if mine is None:
            return entry, refused[0]
        x = subject.inputs(m)
        if reason := why_wrong(mine, x, subject.bias, Oracle.of(x, subject.w, subject.bias, TWIN_MULTIPLICATIONS)):
            return entry, reason
    return None


def why_wrong(built: Built, x: Tensor, bias: Tensor | None, oracle: Oracle) -> str | None:
    """None if the candidate's answer is right by the error rule, else what is wrong with it."""
    candidate = built.candidate
    name = f"{candidate.form}, {candidate.kernel} {candidate.config}".rstrip()
    try:
        ratio = oracle.error_ratio(built.run(x, bias))
    except FAILURES as error:
        return f"{name} failed at {x.shape[0]} rows and is out: {error}"
    if ratio > 1:
        return f"{name} is wrong at {x.shape[0]} rows ({ratio:.3g}x the allowed error) and is out"
    return None
