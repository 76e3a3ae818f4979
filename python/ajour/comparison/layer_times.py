"""Where the time goes: every layer of a model timed in place by hooks, in passes of their own."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import nn

from ajour.planning.rows import call, without_fast_paths

PASSES = 3


@dataclass(frozen=True)
class Breakdown:
    """Medians in µs of one pass with hooks in it: of every layer by name, and of the whole model."""

    layers: dict[str, float]
    whole: float

    @property
    def rest(self) -> float:
        """Everything that is no layer: attention, norms, activations that were not folded in, Python."""
        return max(0.0, self.whole - sum(self.layers.values()))


class _Clock:
    """Points in time, on the device where the work is done."""

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"

    def now(self) -> Any:
        if not self.cuda:
            return time.perf_counter_ns()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def us(self, begin: Any, end: Any) -> float:
        if not self.cuda:
            return float(end - begin) / 1e3
        end.synchronize()
        return float(begin.elapsed_time(end)) * 1e3


def break_down(model: nn.Module, names: Iterable[str], inputs: Any, passes: int = PASSES) -> Breakdown:
    """Runs the model a few times with hooks on the layers of these names; the hooks are gone afterwards."""
    wanted = set(names)
    modules = {name: module for name, module in model.named_modules() if name in wanted}
    device = next((p.device for p in (*model.parameters(), *model.buffers())), torch.device("cpu"))
    clock = _Clock(device)
    marks: dict[str, list[Any]] = {name: [] for name in modules}
    layers: dict[str, list[float]] = {name: [] for name in modules}
    whole = []
    handles = []

    def marker(name: str) -> Any:
        return lambda *anything: marks[name].append(clock.now())

    try:
        for name, module in modules.items():
            handles.append(module.register_forward_pre_hook(marker(name)))
            handles.append(module.register_forward_hook(marker(name)))
        for _ in range(passes):
            with without_fast_paths():
                begin = clock.now()
                call(model, inputs)
                whole.append(clock.us(begin, clock.now()))
            for name, held in marks.items():
                layers[name].append(sum(clock.us(*pair) for pair in zip(held[::2], held[1::2], strict=True)))
                held.clear()
    finally:
        for handle in handles:
            handle.remove()
    return Breakdown({name: median(times) for name, times in layers.items()}, median(whole))
