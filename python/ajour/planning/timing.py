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

from ajour.planning.waiting import Waiting

COLD = 3  # a side counts as cold when it walks through this many times the last-level cache
COPIES_LIMIT = 512 << 20  # bytes that the copies of one side may take
SLOT_US = 1000.0  # calls of one side are repeated until a turn lasts this long
SHORT_US = 125.0  # and this long when times were unsteady: other programs come in between fewer of such turns
FEWEST, MOST = 5, 15  # rounds
DISTURBED = 0.05  # a turn that waited this share of its time for a core does not count
PATIENCE = 3  # times as many rounds, and as long, where turns are disturbed
UNSTEADY = 0.5  # a p80 so far above the fastest turn is no time to believe; on a quiet machine it is seldom above 0.15
TRIAL = 3  # calm turns after which a hopeless side is given up
HOPELESS = 1.5


def remedy(threads: int) -> str:
    """What to do about unsteady times that torch took with so many threads, as the end of a sentence."""
    fewer = ", or give torch fewer threads than there are cores (OMP_NUM_THREADS=1)"
    return f"stop other programs{fewer if threads > 1 else ''}, and measure again"


@dataclass(frozen=True)
class Timing:
    """µs of one call: median, p20 and p80 over the turns; least: of the fastest one, None where that is p20."""

    median: float
    low: float
    high: float
    rounds: int = MOST
    least: float | None = None

    @property
    def spread(self) -> float:
        """(p80 - p20) / median."""
        return (self.high - self.low) / self.median if self.median else 0.0

    @property
    def steady(self) -> bool:
        """Whether the median can be believed. If not, the time counts by whichever end speaks against a gain."""
        return self.high <= (1 + UNSTEADY) * self.fastest

    @property
    def best(self) -> float:
        """What the bar for a gain is taken to need: the median, or the fastest turn of an unsteady one; 0: unknown."""
        return self.median if self.steady else self.fastest

    @property
    def worst(self) -> float:
        """What the one that should gain is taken to need: the median, or the p80 of an unsteady one."""
        return self.median if self.steady else self.high

    @property
    def fastest(self) -> float:
        """The fastest turn that is known of."""
        return self.low if self.least is None else self.least


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
    """Whether the medians differ by more than the wider of the two spreads; if not, there is "no difference".

    Where one is unsteady: whether even the one's slow end is faster than the other's fast end.
    """
    if a.steady and b.steady:
        return abs(a.median - b.median) > max(a.high - a.low, b.high - b.low)
    return a.high < min(b.low, b.best) or b.high < min(a.low, a.best)


def measure(sides: Sequence[Side], timer: Timer, *, seconds: float = 0.4, give_up: bool = True) -> list[Timing]:
    """One timing for each side, from interleaved rounds whose order turns.

    Runs FEWEST to MOST rounds, as many as `seconds` allow, and up to PATIENCE times that until each side has FEWEST
    turns in which no thread waited for a core. Where a side is unsteady then, all are measured once more in short
    turns, and an unsteady side gets its second timing. `give_up` drops a side after TRIAL calm turns if its best one is
    HOPELESS times the worst of another side; it keeps the times it has.
    """
    found = _rounds(sides, timer, SLOT_US, seconds, give_up)
    if all(each.steady for each in found):
        return found
    again = _rounds(sides, timer, SHORT_US, seconds, give_up)
    return [a if a.steady else b for a, b in zip(found, again, strict=True)]


@dataclass
class _Turns:
    """µs of one call in each turn of a side; of disturbed ones also without what its threads waited."""

    calm: list[float] = field(default_factory=list)
    disturbed: list[float] = field(default_factory=list)
    net: list[float] = field(default_factory=list)

    def add(self, us: float, waited: float) -> None:
        """waited: for a core, in µs of one call, the sum over threads."""
        if waited <= DISTURBED * us:
            self.calm.append(us)
        else:
            self.disturbed.append(us)
            self.net.append(max(0.0, us - waited))

    def timing(self) -> Timing:
        """Over calm turns, or over all where they are too few. Without a calm one the fastest is what waiting left."""
        counted = self.calm if len(self.calm) >= TRIAL else self.calm + self.disturbed
        least = min(self.calm or self.net)
        if len(counted) < 2:
            return Timing(counted[0], counted[0], counted[0], len(counted), least)
        fifths = quantiles(counted, n=5, method="inclusive")
        return Timing(median(counted), fifths[0], fifths[3], len(counted), least)


def _rounds(sides: Sequence[Side], timer: Timer, slot: float, seconds: float, give_up: bool) -> list[Timing]:
    paces = [_pace(side, timer) for side in sides]
    counts = [max(1, math.ceil(slot / max(pace, 0.01))) for pace in paces]
    turns = [_Turns() for _ in sides]
    active = list(range(len(sides)))
    first, spent = 0, 0.0
    with Waiting() as waited:
        for turn in range(MOST * PATIENCE):
            fewest = min(len(turns[i].calm) for i in active)
            patience = 1 if fewest >= FEWEST else PATIENCE
            if turn >= MOST * patience or (turn >= FEWEST and spent > patience * seconds * 1e6):
                break
            if give_up and fewest == TRIAL:
                bar = HOPELESS * min(max(turns[i].calm) for i in active)
                active = [i for i in active if min(turns[i].calm) <= bar]
            for place in range(len(active)):
                i = active[(turn + place) % len(active)]
                lead = min(counts[i], len(sides[i].calls)) if counts[i] > 1 else 0
                if lead:  # what this side would find in the cache, and no other side's leavings
                    timer(sides[i], first, lead)
                first += lead
                before = waited()
                us = timer(sides[i], first, counts[i])
                turns[i].add(us, (waited() - before) / counts[i])
                first += counts[i]
                spent += us * (lead + counts[i])
    return [each.timing() for each in turns]


def _pace(side: Side, timer: Timer) -> float:
    """A first estimate in µs for one call; the very first call is thrown away."""
    once = timer(side, 0, 1)
    return min(once, timer(side, 1, 1 if once > SLOT_US else 3))


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
            with torch.cuda.stream(stream):  # lazy initialization, and what calls remember, is no part of the graph
                for call in side.calls:
                    call()
            torch.cuda.current_stream().wait_stream(stream)
            self.graphs[side] = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graphs[side]):
                for call in side.calls:
                    call()
        return self.graphs[side].replay


def timer_for(device: torch.device) -> Timer:
    """Wall clock on a CPU; graph replay on a CUDA device, so that the host's own time does not hide the kernel's."""
    return CudaTimer() if device.type == "cuda" else cpu_timer
