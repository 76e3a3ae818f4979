"""What the device at hand can do at best, measured now: bandwidth, multiplication rates, an empty call."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from ajour import huge_pages
from ajour.formats.block import BlockMatrix
from ajour.ops import BLOCK_LINEAR
from ajour.ops.functional import problem_of
from ajour.ops.prepare import prepare
from ajour.planning.device import last_level_cache, this_device
from ajour.planning.measuring import dense_sides
from ajour.planning.timing import COLD, Side, Timer, measure, timer_for
from ajour.roofline.facts import DeviceFacts
from ajour.roofline.formula import Limits
from ajour.terms.pattern import Block

SIDE = {"cpu": 1536, "cuda": 8192}  # of the square product that shows the rate
MEASURED = "measured here and now"
SECONDS = 0.5  # for each figure


def facts_of(device: torch.device, dtypes: Iterable[torch.dtype]) -> DeviceFacts:
    """This device for weights of these dtypes, with torch's present threads; takes seconds, a bar says so."""
    from ajour.planning.progress import bar

    timer = timer_for(device)
    wanted = dict.fromkeys([*dtypes, *([torch.bfloat16] if device.type == "cuda" else [])])
    found = {}
    with bar(True, len(wanted)) as (tell, advance):
        for dtype in wanted:
            tell(f"the bandwidth and the rate of {str(dtype).removeprefix('torch.')} products")
            found[dtype] = measured(dtype, device, timer)
            advance()
    first = next(iter(found.values()))
    rates = {str(dtype).removeprefix("torch."): each.rate for dtype, each in found.items()}
    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else None
    name = str(this_device(device))
    return DeviceFacts(name, first.bandwidth, rates, capability, MEASURED, first.empty)


def measured(dtype: torch.dtype, device: torch.device, timer: Timer, *, smoke: bool = False) -> Limits:
    """The limits of this device with torch's present threads, from the p20 of the rounds: others only disturb.

    smoke: small and quick figures that only show that it works.
    """
    seconds = 0.01 if smoke else SECONDS
    size = 1 << 20 if smoke else max(64 << 20, COLD * last_level_cache(device))
    source, target = (_floats(size // 4, device) for _ in range(2))
    (copy,) = _times([lambda: target.copy_(source)], timer, seconds)
    bandwidth = 2 * size / copy
    if device.type == "cpu":  # reading alone is faster there
        (read,) = _times([lambda: torch.dot(source, source)], timer, seconds)
        bandwidth = max(bandwidth, size / read)
    side = 128 if smoke else SIDE[device.type]
    x, w = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    dense = [timing.low for timing in measure(dense_sides(x, [w], None), timer, seconds=seconds)]
    nothing = BlockMatrix.from_dense(torch.zeros(32, 32, dtype=dtype, device=device), Block(32, 32))
    problem = problem_of(nothing, 1)
    first = BLOCK_LINEAR.first(problem)
    packed, table = prepare(BLOCK_LINEAR, nothing, [(None, first.name, first.configs(problem)[0])])
    row = torch.ones(1, 32, dtype=dtype, device=device)
    (empty,) = _times([lambda: BLOCK_LINEAR.call(row, packed, None, table, "none")], timer, seconds)
    return Limits(bandwidth, 2 * side**3 / min(dense), empty)


def _floats(count: int, device: torch.device) -> Tensor:
    """Ones, in memory of the kind that packed weights lie in: huge pages are faster to read."""
    made = huge_pages.empty(count, torch.float32) if device.type == "cpu" else torch.empty(count, device=device)
    return made.fill_(1)


def _times(calls: list[Callable[[], Tensor]], timer: Timer, seconds: float) -> list[float]:
    return [timing.low for timing in measure([Side("", [call]) for call in calls], timer, seconds=seconds)]
