"""One layer's candidates built, checked against the float64 oracle and timed against dense, side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
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
from ajour.planning.correctness import MULTIPLICATIONS, Oracle
from ajour.planning.plan import DENSE_KERNELS, RowChoice, serving
from ajour.planning.timing import Side, Timer, Timing, copies_needed, measure
from ajour.terms.errors import AjourError, MachineError
from ajour.terms.pattern import Dense
from ajour.terms.problem import Problem
from ajour.terms.row_table import make_row_table, parse_row_table

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

    def configured(self, config: str) -> Built:
        """The same tensors read by another configuration of a kernel whose packed order it does not change."""
        table = parse_row_table(self.table)
        (entry,) = table.entries
        made = (None, entry.kernel, entry.start, entry.stop, config)
        text = str(make_row_table(table.n, table.k, table.dtype, table.pattern, [made]))
        return Built(replace(self.candidate, config=config), self.packed, text)


@dataclass(frozen=True)
class Forward:
    """What is timed for inference: y = x @ w.T + bias at some number of rows."""

    subject: Subject
    x: Tensor
    oracle: Oracle

    @classmethod
    def of(cls, subject: Subject, m: int, multiplications: float = MULTIPLICATIONS) -> Forward:
        """With random x, checked by so many multiplications in float64."""
        x = subject.inputs(m)
        return cls(subject, x, Oracle.of(x, subject.w, subject.bias, multiplications))

    def why_wrong(self, built: Built) -> str | None:
        """None if the candidate's answer is right by the error rule, else what is wrong with it."""
        x, bias = self.x, self.subject.bias
        return why_wrong(built, len(x), "", lambda: self.oracle.error_ratio(built.run(x, bias)))

    def dense_sides(self, weights: Sequence[Tensor]) -> list[Side]:
        """The layer as it runs today, then every other dense kernel that takes the problem."""
        return dense_sides(self.x, weights, self.subject.bias, self.subject.transposed)

    def settled(self, built: Built, packs: Sequence[list[Tensor]], bench: Bench) -> Built | None:
        """The candidate itself: it has its configuration."""
        return built

    def side(self, built: Built, packs: Sequence[list[Tensor]]) -> Side:
        """The candidate as it is timed."""
        return sparse_side(built, self.x, self.subject.bias, packs)


Task = Callable[..., Forward]  # (subject, rows, multiplications) -> what is timed and checked there


@dataclass
class Bench:
    """Measures subjects on one device.

    model_bytes: of all the dense weights of the model, and cache: the device's last level; both say how cold a layer's
    weights are when it is met again. told: called with what is being measured. notes: what a reader should know.
    task: what is timed of a layer, given it and a number of rows.
    """

    timer: Timer
    model_bytes: int
    cache: int
    told: Callable[[str], None] = lambda text: None
    notes: dict[str, None] = field(default_factory=dict)
    task: Task = Forward.of

    def times(self, subject: Subject, rows: Sequence[int], built: Sequence[Built]) -> Times:
        """All of `built` beside dense at each number of rows; a wrong or failing candidate is left out and noted."""
        today: dict[int, Timing] = {}
        dense: dict[int, dict[str, Timing]] = {}
        found: dict[Candidate, tuple[Built, dict[int, Timing]]] = {}
        weights = copies([subject.w], self._count(subject, subject.nbytes))
        packs: dict[int, list[list[Tensor]]] = {}  # by the packed form, which several configurations may share
        for m in rows:
            self.told(f"{subject.name} at {m} rows")
            try:
                task = self.task(subject, m)
            except RuntimeError as error:  # of torch's allocators, and of sizes that no tensor has
                raise MachineError(f"{subject.name}: {m} rows can't be held here: {error}; plan for fewer") from error
            sides = task.dense_sides([held[0] for held in weights])
            others = len(sides)
            timed: list[Built] = []
            for each in built:
                if m not in each.candidate.rows:
                    continue
                form = id(each.packed[0])
                if form not in packs:
                    packs[form] = copies(each.packed, self._count(subject, each.nbytes))
                settled = task.settled(each, packs[form], self)
                if settled is None or not self.right(subject, task.why_wrong(settled)):
                    continue
                side = task.side(settled, packs[form])
                if self.timeable(subject, side, m):
                    sides.append(side)
                    timed.append(settled)
            timings = measure(sides, self.timer)
            today[m] = timings[0]
            dense[m] = {side.name: t for side, t in zip(sides[1:others], timings[1:others], strict=True)}
            for each, timing in zip(timed, timings[others:], strict=True):
                found.setdefault(each.candidate, (each, {}))[1][m] = timing
        return Times(today, dense, tuple(_timed(each, times) for each, times in found.values()))

    def right(self, subject: Subject, reason: str | None) -> bool:
        """Whether nothing is wrong; what is wrong is noted."""
        if reason:
            self.notes[f"{subject.name}: {reason}"] = None
        return reason is None

    def timeable(self, subject: Subject, side: Side, m: int) -> bool:
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
    subject: Subject, decision: Decision, rows: Sequence[int], candidates: Sequence[Candidate], task: Task = Forward.of
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
        if reason := task(subject, m, TWIN_MULTIPLICATIONS).why_wrong(mine):
            return entry, reason
    return None


def why_wrong(built: Built, m: int, what: str, error_ratio: Callable[[], float]) -> str | None:
    """None if the candidate's answer at m rows is right by the error rule, else what is wrong with it (or `what`)."""
    candidate = built.candidate
    name = f"{candidate.form}, {candidate.kernel} {candidate.config}".rstrip() + (f", {what}," if what else "")
    try:
        ratio = error_ratio()
    except FAILURES as error:
        return f"{name} failed at {m} rows and is out: {error}"
    if ratio > 1:
        return f"{name} is wrong at {m} rows ({ratio:.3g}x the allowed error) and is out"
    return None
