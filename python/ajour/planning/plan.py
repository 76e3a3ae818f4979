"""A plan: which kernel serves which layer, and why; a record that a person can read and a file can hold."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from os import PathLike
from typing import TYPE_CHECKING, Protocol

import torch

from ajour.planning import serialization
from ajour.planning.device import Device, this_device
from ajour.terms.errors import PlanError
from ajour.terms.pattern import Pattern

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

VERSION = 3
DENSE_KERNELS = ("onednn", "aten")


@dataclass(frozen=True)
class RowChoice:
    """`kernel` with `config` serves up to `limit` rows of x, or any number where limit is None."""

    limit: int | None
    kernel: str
    config: str = ""


def serving(kernels: Iterable[RowChoice], rows: int) -> RowChoice | None:
    """The first entry, of rising ones, that serves so many rows."""
    return next((entry for entry in kernels if entry.limit is None or rows <= entry.limit), None)


@dataclass(frozen=True)
class Measurement:
    """One layer at one number of rows; times are medians in µs for one call, or ends of unsteady times.

    dense_us, dense_kernel:   the best dense kernel.
    today_us:                 the layer as the user runs it now: today_us / dense_us is what a better dense brings,
                              dense_us / sparse_us what sparsity brings.
    sparse_us, sparse_kernel: the sparse kernel that was chosen, or the best one where dense was; None without any.
    spread:                   the widest (p80 - p20) / median of these times.
    steady:                   whether all are medians. If not, the unsteady dense ones are their fastest turns and an
                              unsteady sparse one is its p80: the least gain that the turns allow.
    """

    rows: int
    dense_us: float
    dense_kernel: str
    today_us: float
    sparse_us: float | None = None
    sparse_kernel: str | None = None
    spread: float = 0.0
    steady: bool = field(default=True, metadata={serialization.SINCE: 2})


@dataclass(frozen=True)
class Choice:
    """What a plan decided for one layer.

    shape:        (n, k), out and in features (more sides for fused experts); dtype: as torch names it, less "torch.".
    pattern:      the most useful one found; density: non-zeros / (n * k). Both None where the weight was not looked at.
    op:           the op to call, or "" to keep the layer as it is; stored: the pattern its matrix is stored in.
    kernels:      in rising order of rows; the last has no limit.
    dense_bytes:  of the dense weight; sparse_bytes: of everything that stays resident under this choice.
    reason:       one sentence, why this choice.
    measured_on:  the layer whose times these are, where a twin was measured instead of this one.
    """

    layer: str
    shape: tuple[int, ...]
    dtype: str
    pattern: Pattern | None = None
    density: float | None = None
    op: str = ""
    stored: Pattern | None = None
    kernels: tuple[RowChoice, ...] = ()
    measurements: tuple[Measurement, ...] = ()
    dense_bytes: int = 0
    sparse_bytes: int = 0
    reason: str = ""
    measured_on: str | None = None

    def __post_init__(self) -> None:
        if bool(self.op) != bool(self.kernels) or bool(self.op) != (self.stored is not None):
            raise PlanError(
                f"{self.layer}: an op, the pattern it is stored in and its kernels come together, "
                f"found op {self.op!r}, stored {self.stored}, {len(self.kernels)} kernels"
            )
        limits = [kernel.limit for kernel in self.kernels]
        rising = sorted({limit for limit in limits if limit})
        if self.kernels and limits != [*rising, None]:
            raise PlanError(f"{self.layer}: limits of rows must rise and end without one, found {limits}")

    def at(self, rows: int) -> RowChoice | None:
        """The entry that serves so many rows; None where the layer is kept as it is."""
        return serving(self.kernels, rows)

    def chosen_us(self, measurement: Measurement) -> float:
        """The measured time of what was chosen for these rows."""
        entry = self.at(measurement.rows)
        if entry is None:
            return measurement.today_us
        if entry.kernel in DENSE_KERNELS or measurement.sparse_us is None:
            return measurement.dense_us if entry.kernel == measurement.dense_kernel else measurement.today_us
        return measurement.sparse_us

    @property
    def dense_us(self) -> float | None:
        """Best dense, summed over the measured numbers of rows; None where nothing was measured."""
        return sum(m.dense_us for m in self.measurements) if self.measurements else None

    @property
    def sparse_us(self) -> float | None:
        """What was chosen, summed like dense_us."""
        return sum(self.chosen_us(m) for m in self.measurements) if self.measurements else None

    @property
    def today_us(self) -> float | None:
        """The layer as it runs today, summed like dense_us."""
        return sum(m.today_us for m in self.measurements) if self.measurements else None

    @property
    def speedup(self) -> float | None:
        """dense_us / sparse_us: the gain over the best dense; never counts what a better dense alone would bring."""
        if not self.dense_us or not self.sparse_us:
            return None
        return self.dense_us / self.sparse_us


def refuse_text(given: object) -> None:
    """Raises PlanError for the path or the text of a plan, where a Plan or an example is expected."""
    if isinstance(given, (str, bytes, PathLike)):
        raise PlanError(
            f"expected a Plan or an example of the model's inputs, found the {type(given).__name__} {given!r:.80}; "
            "ajour.Plan.from_json(text) makes a Plan of a plan's text, Path(file).read_text() is that of a file"
        )


class LayerShape(Protocol):
    """What a plan compares of a model's layer."""

    @property
    def name(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> torch.dtype: ...


@dataclass(frozen=True)
class Plan:
    """Every linear layer of a model with its choice, in the model's order, and the device that they were measured on.

    margin: what sparse had to gain over dense (0.05 is 5 %), None where the best sparse was taken in any case.
    memory: the cap on resident bytes, as a share of the dense weight's.
    notes:  what a reader should know: candidates that failed or were wrong, a machine that was not quiet.
    untried: patterns and kernels that were left out before any timing, with the reason: most are for other devices.
    trainable: whether times are of y, dx and dw together, and kernels those that train; their configurations then read
              "forward / dx / dw".
    """

    choices: tuple[Choice, ...]
    device: Device
    margin: float | None = 0.05
    memory: float = 1.0
    notes: tuple[str, ...] = ()
    untried: tuple[str, ...] = field(default=(), metadata={serialization.SINCE: 2})
    trainable: bool = field(default=False, metadata={serialization.SINCE: 3})

    def __post_init__(self) -> None:
        names: set[str] = set()
        for choice in self.choices:
            if choice.layer in names:
                raise PlanError(f"a plan holds each layer once, found {choice.layer!r} twice")
            names.add(choice.layer)

    def __getitem__(self, layer: str) -> Choice:
        """The choice for the layer of that name; raises PlanError."""
        for choice in self.choices:
            if choice.layer == layer:
                return choice
        raise PlanError(f"the plan has no layer {layer!r}; it has {', '.join(c.layer for c in self.choices) or 'none'}")

    def why_not_device(self, device: torch.device | str | None = None) -> str | None:
        """None if the plan holds on this device, else the reason; `device` defaults to the plan's type of device."""
        if device is None and self.device.type == "cuda" and not torch.cuda.is_available():
            return f"the plan was measured on {self.device}, and this machine has no CUDA device"
        here = this_device(device or self.device.type)
        if self.device.same_kind(here):
            return None
        return f"the plan was measured on {self.device}, this is {here}; plan again with an example"

    def matches_device(self, device: torch.device | str | None = None) -> bool:
        """Whether the plan was measured on this kind of device."""
        return self.why_not_device(device) is None

    def why_not_model(self, layers: Iterable[LayerShape]) -> str | None:
        """None if the plan was made for a model of these names, shapes and dtypes, else the first difference."""
        theirs = {layer.name: (tuple(layer.shape), str(layer.dtype).removeprefix("torch.")) for layer in layers}
        for choice in self.choices:
            found = theirs.pop(choice.layer, None)
            if found is None:
                return f"{choice.layer}: the plan knows this layer, the model does not have it"
            if found != (choice.shape, choice.dtype):
                expected, seen = ("x".join(map(str, s)) + f" {d}" for s, d in ((choice.shape, choice.dtype), found))
                return f"{choice.layer}: the plan was made for {expected}, the model has {seen}"
        for name in theirs:
            return f"{name}: the model has this layer, the plan does not know it"
        return None

    def to_json(self) -> str:
        """Text that `from_json` reads; the same plan gives the same text."""
        return serialization.write(self, VERSION)

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """The inverse of `to_json`, of older versions too; raises PlanError for malformed text or a future version."""
        return serialization.read(cls, text, VERSION)

    def __str__(self) -> str:
        from ajour.planning.report import text

        return text(self)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from ajour.planning.report import render

        yield from render(self)
