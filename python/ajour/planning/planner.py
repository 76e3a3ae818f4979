"""plan: measures on this device which kernel should serve which layer, and changes nothing."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from numbers import Real
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from ajour.detect import Detection, detect
from ajour.layers import Layer, find_layers, is_converted
from ajour.planning.candidates import Candidate, Form, candidates, forms, parse_formats
from ajour.planning.choosing import Decision, Times, decide
from ajour.planning.device import OtherWork, last_level_cache, this_device
from ajour.planning.measuring import Bench, Forward, Subject, Task, build, refute
from ajour.planning.plan import Choice, Plan, RowChoice
from ajour.planning.rows import MOST_COUNTS, learn_rows, planned_rows
from ajour.planning.timing import Timer, timer_for
from ajour.planning.training import Step
from ajour.terms.errors import PlanError
from ajour.terms.pattern import Dense, Pattern

TWIN = 0.02  # layers whose densities differ by less, of one shape and pattern, share one measurement


def plan(
    model: nn.Module,
    example: Any,
    *,
    rows: Sequence[int] | None = None,
    formats: Iterable[Pattern | str] | None = None,
    margin: float = 0.05,
    memory: float = 1.0,
    progress: bool = True,
    trainable: bool = False,
) -> Plan:
    """Measures every linear layer of `model`, dense against each sparse kernel that takes it; the model is not changed.

    example:  a tensor, a tuple of inputs, a mapping of named inputs, or a list of several of these; the rows that it
              produces at each layer are planned for. None is enough where `rows` are given.
    rows:     plan for these numbers of rows at every layer that runs, instead of the example's. Between two measured
              numbers that disagree the larger one's choice holds.
    formats:  patterns (or their names, "2:4") to store weights in, instead of those found; () leaves only dense.
    margin:   what sparse must gain over the best dense, 0.05 is 5 %. -inf takes the best sparse kernel wherever a
              pattern fits, even the reference, with one packed form for all rows if `memory` has no room for more.
    memory:   cap on a layer's resident bytes as a share of its dense weight, a kept dense copy counted.
    progress: a bar on stderr that names what is being measured, if stderr is a terminal.
    trainable: plan for `convert(..., trainable=True)`: a time is that of y, dx and dw together, each by the
              configuration that is the fastest here, which the plan names; what can't be trained is left out.

    A candidate's output is checked, max|e| <= 2 max|e_dense| + 2**-23 max(|x| |w|.T), before its time counts. Raises
    PlanError for settings that make no sense; an error of the model itself passes through.
    """
    margin, memory = _settings(margin, memory)
    rows = None if rows is None else _whole(rows)
    if example is None and rows is None:
        raise PlanError("a plan needs an example, or the rows to plan for")
    layers = find_layers(model)
    if example is not None and (lazy := [name for name, held in _held(model) if is_lazy(held)]):
        raise PlanError(f"{lazy[0]!r} is not initialized yet, and planning changes nothing; run the model once first")
    notes: dict[str, None] = {}
    seen = None if example is None else learn_rows(model, layers, example, lambda text: notes.update({text: None}))
    device = next((layer.device for layer in layers if layer.reason is None), torch.device("cpu"))
    if torch.is_autocast_enabled(device.type):
        notes[_of_autocast(device.type)] = None
    bar_of_sparse = None if margin == float("-inf") else margin
    planner = Planner(parse_formats(formats), bar_of_sparse, memory, timer_for(device), device, trainable, notes)
    others = OtherWork()
    from ajour.planning.progress import bar

    with torch.no_grad(), torch.autocast(device.type, enabled=False), bar(progress, len(layers)) as (tell, advance):
        choices = planner.choices(layers, seen, rows, tell, advance)
    if busy := others.warning():
        planner.notes[busy] = None
    told, untried = tuple(planner.notes), tuple(planner.untried)
    return Plan(choices, this_device(device), planner.margin, memory, told, untried, trainable)


def _of_autocast(device: str) -> str:
    dtype = str(torch.get_autocast_dtype(device)).removeprefix("torch.")
    return (
        f"autocast to {dtype} is on here, and no time is of a layer under it: each call would cast x, and a sparse "
        f"layer be slower than shown; plan for model.to(torch.{dtype}), and run that without autocast"
    )


def _held(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def _settings(margin: float, memory: float) -> tuple[float, float]:
    fits = all(isinstance(each, Real) for each in (margin, memory))
    if not fits or (not margin > -1 and margin != float("-inf")) or not 0 < memory < float("inf"):
        found = f"margin={margin!r}, memory={memory!r}"
        raise PlanError(f"expected margin > -1 (or -inf) and a positive memory, found {found}")
    return float(margin), float(memory)


def _whole(rows: Iterable[int]) -> list[int]:
    """Numbers of rows as a caller gives them; raises PlanError unless each is a whole one of at least 1."""
    try:
        counts = [operator.index(m) for m in rows]
    except TypeError:
        raise PlanError(f"expected rows as a list of whole numbers, like [1, 32], found {rows!r}") from None
    if not counts or min(counts) < 1:
        raise PlanError(f"expected rows of at least 1, found {counts}")
    return counts


@dataclass
class Measured:
    """A layer that was measured, for its twins."""

    name: str
    key: tuple[Any, ...]
    density: float
    times: Times


@dataclass
class Planner:
    """The settings of one plan and what has been measured so far."""

    formats: tuple[Pattern, ...] | None
    margin: float | None
    memory: float
    timer: Timer
    device: torch.device
    trainable: bool = False
    notes: dict[str, None] = field(default_factory=dict)
    untried: dict[str, None] = field(default_factory=dict)
    measured: list[Measured] = field(default_factory=list)

    def choices(
        self,
        layers: Sequence[Layer],
        seen: dict[str, set[int]] | None,
        wanted: Sequence[int] | None,
        tell: Callable[[str], None] = lambda text: None,
        advance: Callable[[], None] = lambda: None,
    ) -> tuple[Choice, ...]:
        """One choice for each layer, in order. seen: rows by layer (None: every layer runs); wanted: rows instead."""
        usable = [layer for layer in layers if layer.reason is None]
        model_bytes = sum(layer.shape[0] * layer.shape[1] * layer.dtype.itemsize for layer in usable)
        bench = Bench(self.timer, model_bytes, last_level_cache(self.device), tell, self.notes, self._task)
        made = []
        for layer in layers:
            made.append(self._choice(layer, seen, wanted, bench))
            advance()
        return tuple(made)

    @property
    def _task(self) -> Task:
        return Step.of if self.trainable else Forward.of

    def _choice(
        self, layer: Layer, seen: dict[str, set[int]] | None, wanted: Sequence[int] | None, bench: Bench
    ) -> Choice:
        dtype = str(layer.dtype).removeprefix("torch.")
        reason = layer.reason
        if reason is None and layer.device.type != self.device.type:
            reason = f"it is on {layer.device}, this plan is for {self.device}"
        if reason is not None:
            return Choice(layer.name, layer.shape, dtype, reason=reason)
        subject = Subject(layer.name, layer.weight(), layer.bias(), layer.kind == "Conv1D")
        found = detect(subject.w)
        ran = set() if seen is None else seen.get(layer.name, set())
        rows = planned_rows(ran, wanted) if ran or seen is None else ()
        if len(ran) > len(rows) and wanted is None and rows:
            self.notes[f"a layer that sees more than {MOST_COUNTS} numbers of rows is measured at {MOST_COUNTS}"] = None
        nbytes, twin = subject.nbytes, None
        if not nbytes or not rows:
            why = "the example never calls this layer with a row" if nbytes else "its weight is empty"
            decision = Decision("", None, (), (), nbytes, why)
        else:
            decision, twin = self._decision(subject, found, rows, bench)
            if not decision.op and is_converted(layer.module):  # "as it is" would keep what a former plan made of it
                decision = replace(decision, op="dense_linear", stored=Dense(), kernels=(RowChoice(None, "aten"),))
        return Choice(
            layer.name, layer.shape, dtype, found.pattern, found.density, decision.op, decision.stored,
            decision.kernels, decision.measurements, nbytes, decision.nbytes, decision.reason, twin,
        )  # fmt: skip

    def _decision(
        self, subject: Subject, found: Detection, rows: tuple[int, ...], bench: Bench
    ) -> tuple[Decision, str | None]:
        """The choice, and the name of the twin that was measured instead."""
        at_any_price = self.margin is None
        device, trainable = self.device.type, self.trainable
        tried, refused = forms(found, self.formats, at_any_price=at_any_price, device=device, trainable=trainable)
        capability = torch.cuda.get_device_capability(self.device) if self.device.type == "cuda" else None
        every: list[Candidate] = []
        untaken: list[str] = []
        for form in tried:
            some, reasons = candidates(form, found, rows, device, capability, at_any_price, trainable)
            every += some
            untaken += reasons
        nothing = _nothing_sparse(found, tried, every, untaken if tried else refused, trainable)
        if self.formats is not None and not any(not isinstance(p, Dense) for p in self.formats):
            nothing = "formats= asks for dense alone"
        refused += untaken
        shape, dtype = tuple(subject.w.shape), subject.w.dtype
        key = (shape, dtype, rows, subject.bias is None, subject.transposed, tuple(every))
        near = (m for m in self.measured if m.key == key and abs(m.density - found.density) <= TWIN * m.density)
        twin = next(near, None)
        if twin is None:
            unfit: list[str] = []
            built = build(subject.w, every, unfit.append)
            nothing = nothing if built or not unfit else "; ".join(unfit)
            times = bench.times(subject, rows, built)
            self.measured.append(Measured(subject.name, key, found.density, times))
            for reasons, place in ((refused, self.untried), (unfit, self.notes)):
                place.update({f"{subject.name}: {reason}": None for reason in reasons})
            decision = self._decide(subject, times, nothing)
        else:
            decision = self._checked(subject, twin.times, rows, every, nothing)
        return decision, None if twin is None else twin.name

    def _checked(
        self, subject: Subject, times: Times, rows: tuple[int, ...], every: Sequence[Candidate], nothing: str
    ) -> Decision:
        """The choice by a twin's times, once the chosen kernels have given right answers for this weight too."""
        while True:
            decision = self._decide(subject, times, nothing)
            chosen = every
            if self.trainable:  # which have found their configurations
                chosen = [replace(each, config=entry.config) for each in every for entry in decision.kernels]
            wrong = refute(subject, decision, rows, chosen, self._task)
            if wrong is None:
                return decision
            entry, reason = wrong
            self.notes[f"{subject.name}: {reason}"] = None
            out = (decision.op, decision.stored, entry.kernel, entry.config)
            right = tuple(t for t in times.sparse if (t.op, t.stored, t.kernel, t.config) != out)
            times = replace(times, sparse=right)

    def _decide(self, subject: Subject, times: Times, nothing: str) -> Decision:
        if not self.trainable:
            return decide(times, subject.nbytes, self.margin, self.memory, nothing)
        # a dense weight can't be trained beside blocks of it, nor by another kernel than torch's own
        decision = decide(times, subject.nbytes, self.margin, min(1.0, self.memory), nothing)
        return replace(decision, op="", stored=None, kernels=()) if decision.op == "dense_linear" else decision


def _nothing_sparse(
    found: Detection, tried: Sequence[Form], every: Sequence[Candidate], refused: Sequence[str], trainable: bool
) -> str:
    """Why nothing sparse was timed, where that happens."""
    if every:
        return f"none of {len(every)} sparse candidates gave a right answer"
    if trainable and tried:
        names = " or ".join(str(form) for form in tried)
        return f"no kernel here trains {names} faster than dense (the reference holds its zeros, but saves no time)"
    if refused:
        return "; ".join(refused)
    if tried:
        return f"only the reference kernel takes {tried[0].pattern}, and it is never faster than dense"
    return f"no zeros to use: {found.density:.1%} of the weight is non-zero"
