"""Fair measurement: candidates take turns round by round, and each walks through copies of its own weights."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median, quantiles
from typing import Protocol
from weakref import WeakKeyDictionary

import torch

COLD = 3  # a side counts as cold when it walks through this many times the last-level cache
COPIES_LIMIT = 512 << 20  # bytes that the copies of one side may take
SLOT_US = 1000.0  # calls of one side are repeated until a turn lasts this long
FEWEST, MOST = 5, 15  # rounds
RESTLESS = 0.3  # a spread from which on rounds go on, to PATIENCE times as many and as long
PATIENCE = 2
TRIAL = 3  # rounds after which a hopeless side is given up
HOPELESS = 1.5


@dataclass(frozen=True)
class Timing:
    """µs of one call: median, p20 and p80 over the rounds."""

    median: float
    low: float
    high: float
    rounds: int = MOST

    @property
    def spread(self) -> float:
        """(p80 - p20) / median."""
        return (self.high - self.low) / self.median if self.median else 0.0


@dataclass(frozen=True, eq=False)
class Side:
    """A candidate as it is timed: one call for each copy of its weights, walked through in turn."""

    name: str
    calls: Sequence[Callable[[], object]]


class Timer(Protocol):
    """µs of one call, averaged over `count` calls of a side that begin with copy number `first`."""

    def __call__(self, side: Side, first: int, count: int) -> float: ...


def copies_needed(own: int, dense: int, model: int, cache: int) -> tuple[int, bool]:
    """(copies, capped) of a side with `own` bytes that stands for a layer of `dense` bytes in a model of `model` bytes.

    A layer is met again after the rest of the model has run, with as much of it as this side would leave: the side
    walks through model / dense copies, but never through more than COLD times the cache. Capped by COPIES_LIMIT.
    """
    wanted = min(model * own / max(1, dense), COLD * cache)
    return max(1, math.ceil(min(wanted, COPIES_LIMIT) / max(1, own))), wanted > COPIES_LIMIT


def differ(a: Timing, b: Timing) -> bool:
    """Whether the medians differ by more than the wider of the two spreads; if not, there is "no difference"."""
    return abs(a.median - b.median) > max(a.high - a.low, b.high - b.low)


def measure(sides: Sequence[Side], timer: Timer, *, seconds: float = 0.4, give_up: bool = True) -> list[Timing]:
    """One timing for each side, from interleaved rounds whose order turns.

    Runs FEWEST to MOST rounds, as many as `seconds` allow, and up to PATIENCE times that while the fastest side's times
    spread widely. `give_up` drops a side after TRIAL rounds if its best round is HOPELESS times the worst of another
    side; it keeps the times it has.
    """
    paces = [_pace(side, timer) for side in sides]
    counts = [max(1, math.ceil(SLOT_US / max(pace, 0.01))) for pace in paces]
    times: list[list[float]] = [[] for _ in sides]
    active = list(range(len(sides)))
    first, spent = 0, 0.0
    for turn in range(MOST * PATIENCE):
        if turn >= MOST or (turn >= FEWEST and spent > seconds * 1e6):
            calm = min((_summary(times[i]) for i in active), key=lambda timing: timing.median).spread < RESTLESS
            if calm or spent > PATIENCE * seconds * 1e6:
                break
        if give_up and turn == TRIAL:
            bar = HOPELESS * min(max(times[i]) for i in active)
            active = [i for i in active if min(times[i]) <= bar]
        for place in range(len(active)):
            i = active[(turn + place) % len(active)]
            lead = min(counts[i], len(sides[i].calls)) if counts[i] > 1 else 0
            if lead:  # what this side would find in the cache, and no other side's leavings
                timer(sides[i], first, lead)
            first += lead
            times[i].append(timer(sides[i], first, counts[i]))
            first += counts[i]
            spent += times[i][-1] * (lead + counts[i])
    return [_summary(each) for each in times]


def _pace(side: Side, timer: Timer) -> float:
    """A first estimate in µs for one call; the very first call is thrown away."""
    once = timer(side, 0, 1)
    return min(once, timer(side, 1, 1 if once > SLOT_US else 3))


def _summary(times: list[float]) -> Timing:
    if len(times) < 2:
        return Timing(times[0], times[0], times[0], len(times))
    fifths = quantiles(times, n=5, method="inclusive")
    return Timing(median(times), fifths[0], fifths[3], len(times))


def cpu_timer(side: Side, first: int, count: int) -> float:
    """Wall clock."""
    calls, copies = side.calls, len(side.calls)
    start = time.perf_counter_ns()
    for i in range(first, first + count):
        calls[i % copies]()
    return (time.perf_counter_ns() - start) / (1e3 * count)


@dataclass
class CudaTimer:
    """CUDA events around a replayed graph of one call for each copy, or (eager) around the calls themselves."""

    graph: bool = True
    graphs: WeakKeyDictionary[Side, torch.cuda.CUDAGraph] = field(default_factory=WeakKeyDictionary)

    def __call__(self, side: Side, first: int, count: int) -> float:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        passes = max(1, count // len(side.calls))
        replay = self._replay(side) if self.graph else None
        begin.record()
        if replay is not None:
            for _ in range(passes):
                replay()
        else:
            for i in range(first, first + count):
                side.calls[i % len(side.calls)]()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) * 1e3 / (passes * len(side.calls) if replay is not None else count)

    def _replay(self, side: Side) -> Callable[[], None]:
        if side not in self.graphs:
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):  # lazy initialization must not fall into the capture
                side.calls[0]()
            torch.cuda.current_stream().wait_stream(stream)
            self.graphs[side] = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graphs[side]):
                for call in side.calls:
                    call()
        return self.graphs[side].replay


def timer_for(device: torch.device) -> Timer:
    """Wall clock on a CPU; graph replay on a CUDA device, so that the host's own time does not hide the kernel's."""
    return CudaTimer() if device.type == "cuda" else cpu_timer
