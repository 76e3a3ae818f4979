"""The models suite: whole models, stock, compiled and on the best dense kernels against converted, and checked."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ajour.conversion import convert
from ajour.planning.plan import Plan
from ajour.planning.planner import plan
from ajour.planning.rows import call
from ajour.planning.timing import CudaTimer, Side, Timer, Timing, cpu_timer, differ, measure
from ajour.pruning import prune
from benchmarks.subjects import Subject

Row = dict[str, Any]
MEMORY = 2.0  # room for a second form, so that each size may have its best kernel
ROUNDING = {torch.float32: 2.0**-23, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
DENSE = ("stock", "best dense kernels", "compiled")  # the ways to run a model without its zeros
SPARSE = ("converted", "converted, compiled")


@dataclass(frozen=True)
class Settings:
    """What to measure. seconds: for each size; compiled: what torch.compile makes of the stock and of the converted;
    compiling: seconds that this may take for each model, sizes together; modes: "eager", and "graph" for replays of a
    CUDA graph.
    """

    subjects: Sequence[Subject]
    threads: Sequence[int]
    device: torch.device
    seconds: float = 2.0
    compiled: bool = True
    compiling: float = 120.0
    modes: Sequence[str] = ("eager",)

    def timer(self, mode: str) -> Timer:
        """The clock of a mode."""
        return CudaTimer(graph=mode == "graph") if self.device.type == "cuda" else cpu_timer


@dataclass
class Compiling:
    """Compiled forms of a model's sides, one for each size, until making them has taken so many seconds."""

    sides: dict[str, Any]
    limit: float
    spent: float = 0.0
    notes: list[str] = field(default_factory=list)

    def ready(self, inputs: Any) -> dict[str, Any]:
        """The sides that are compiled for these inputs; a note where the time was up."""
        found, self.notes = {}, []
        for name, model in self.sides.items():
            if self.spent > self.limit:
                self.notes.append(f"{name}: compiling had taken {self.spent:.0f} s, the limit is {self.limit:g}")
                continue
            begin = time.monotonic()
            call(model, inputs)
            self.spent += time.monotonic() - begin
            found[name] = model
        return found


def run(settings: Settings, plans: Callable[[Plan], None]) -> Iterator[tuple[str, list[Row]]]:
    """For each model what it was and its result rows, one for each size; `plans` is shown every sparse plan."""
    before = torch.get_num_threads()
    try:
        for count in settings.threads:
            torch.set_num_threads(count)
            for subject in settings.subjects:
                yield str(subject), _rows(settings, subject, plans)
    finally:
        torch.set_num_threads(before)


@torch.inference_mode()
def _rows(settings: Settings, subject: Subject, plans: Callable[[Plan], None]) -> list[Row]:
    stock = subject.make().to(settings.device, subject.dtype).eval()
    stock = prune(stock, subject.pattern, density=subject.density, layers=subject.layers)
    examples = [subject.example(stock, *size) for size in subject.sizes]
    made = plan(stock, examples, memory=MEMORY)
    plans(made)
    models: dict[str, Any] = {
        "stock": stock,
        "best dense kernels": convert(copy.deepcopy(stock), plan(stock, examples, formats=())),
        "converted": convert(copy.deepcopy(stock), made),
    }
    torch._dynamo.reset()  # sizes that another model has seen count against torch's limit
    wanted = {"compiled": stock, "converted, compiled": models["converted"]} if settings.compiled else {}
    compiling = Compiling(
        {name: torch.compile(each, dynamic=False) for name, each in wanted.items()}, settings.compiling
    )
    exact = copy.deepcopy(stock).double()
    rows = []
    for size, inputs in zip(subject.sizes, examples, strict=True):
        every = models | compiling.ready(inputs)
        ratios = _error_ratios(every, exact, inputs, subject.dtype)
        sides = [Side(name, [partial(call, model, inputs)]) for name, model in every.items()]
        for mode in settings.modes:
            timings = measure(sides, settings.timer(mode), seconds=settings.seconds, give_up=False)
            row = _row(subject, size, mode, dict(zip(every, timings, strict=True)), ratios, made)
            rows.append({**row, "left_out": "; ".join(compiling.notes) or None})
    return rows


def _row(
    subject: Subject, size: tuple[int, int], mode: str, found: dict[str, Timing], ratios: dict[str, float], made: Plan
) -> Row:
    """Best against best: the fastest way to run it dense, and the fastest way to run it converted."""
    dense = min((name for name in DENSE if name in found), key=lambda name: found[name].best)
    sparse = min((name for name in SPARSE if name in found), key=lambda name: found[name].worst)
    right = ratios[sparse] <= 1
    counted = {name: timing.worst if name in SPARSE else timing.best for name, timing in found.items()}
    gain, stock_gain = (counted[name] / counted[sparse] for name in (dense, "stock"))
    before, after = (sum(getattr(c, name) for c in made.choices) for name in ("dense_bytes", "sparse_bytes"))
    return {
        "model": subject.name,
        "pattern": str(subject.pattern),
        "density": subject.kept,
        "batch": size[0],
        "tokens": size[1],
        "dtype": str(subject.dtype).removeprefix("torch."),
        "mode": mode,
        "threads": torch.get_num_threads(),
        **{f"{name.replace(',', '').replace(' ', '_')}_us": round(us, 1) for name, us in counted.items()},
        "dense_us": round(counted[dense], 1),
        "dense_kernel": dense,
        "sparse_us": round(counted[sparse], 1),
        "sparse_kernel": sparse,
        "spread": round(max(found[dense].spread, found[sparse].spread), 3),
        "speedup": round(gain, 3) if right else None,
        "over_stock": round(stock_gain, 3) if right else None,
        "steady": found[dense].steady and found[sparse].steady,
        "no_difference": not differ(found[dense], found[sparse]),
        "dense_bytes": before,
        "sparse_bytes": after,
        "error_ratio": round(ratios[sparse], 3),
    }


def _error_ratios(models: dict[str, Any], exact: nn.Module, inputs: Any, dtype: torch.dtype) -> dict[str, float]:
    """max|e| of each converted form over twice that of the masked dense model, all against float64, and a rounding."""
    wide = {name: _widened(value) for name, value in inputs.items()} if isinstance(inputs, dict) else _widened(inputs)
    truth = _output(call(exact, wide))

    def error(name: str) -> float:
        return float((_output(call(models[name], inputs)).double() - truth).abs().max())

    allowed = 2 * error("stock") + ROUNDING[dtype] * float(truth.abs().max())
    return {name: error(name) / allowed for name in SPARSE if name in models}


def _widened(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def _output(y: Any) -> Tensor:
    """The first tensor of what a model returns."""
    return y if isinstance(y, Tensor) else y[0]
