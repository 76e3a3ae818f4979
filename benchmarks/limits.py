"""What the device can do at best, measured in the same run: bandwidth, multiplication rate, an empty call."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ajour.formats.block import BlockMatrix
from ajour.ops import BLOCK_LINEAR
from ajour.ops.functional import problem_of
from ajour.ops.prepare import prepare
from ajour.planning.device import last_level_cache
from ajour.planning.measuring import dense_sides
from ajour.planning.timing import COLD, Side, Timer, measure
from ajour.terms.pattern import Block


@dataclass(frozen=True)
class Limits:
    """bandwidth: bytes in a µs that can be moved from memory; rate: additions and multiplications in a µs of a dense
    product; empty: µs of an op call that has nothing to compute.
    """

    bandwidth: float
    rate: float
    empty: float

    def us(self, nbytes: float, flops: float) -> float:
        """t_empty + max(bytes / bandwidth, flops / rate): no kernel can be faster."""
        return self.empty + max(nbytes / self.bandwidth, flops / self.rate)

    def best(self, other: Limits | None) -> Limits:
        """The better of both: other programs only ever make a device look slower."""
        if other is None:
            return self
        bandwidth, rate = max(self.bandwidth, other.bandwidth), max(self.rate, other.rate)
        return Limits(bandwidth, rate, min(self.empty, other.empty))


def measured(dtype: torch.dtype, device: torch.device, timer: Timer, *, smoke: bool = False) -> Limits:
    """The limits of this device with torch's present threads, from the p20 of the rounds: others only disturb."""
    seconds = 0.01 if smoke else 0.5
    size = 1 << 20 if smoke else max(64 << 20, COLD * last_level_cache(device))
    source = torch.ones(size // 4, device=device)
    target = torch.empty_like(source)
    (copy,) = _times([lambda: target.copy_(source)], timer, seconds)
    bandwidth = 2 * size / copy
    if device.type == "cpu":  # reading alone is faster there
        (read,) = _times([lambda: torch.dot(source, source)], timer, seconds)
        bandwidth = max(bandwidth, size / read)
    side = 128 if smoke else 1536 if device.type == "cpu" else 8192
    x, w = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    dense = [timing.low for timing in measure(dense_sides(x, [w], None), timer, seconds=seconds)]
    nothing = BlockMatrix.from_dense(torch.zeros(32, 32, dtype=dtype, device=device), Block(32, 32))
    problem = problem_of(nothing, 1)
    first = BLOCK_LINEAR.first(problem)
    packed, table = prepare(BLOCK_LINEAR, nothing, [(None, first.name, first.configs(problem)[0])])
    row = torch.ones(1, 32, dtype=dtype, device=device)
    (empty,) = _times([lambda: BLOCK_LINEAR.call(row, packed, None, table, "none")], timer, seconds)
    return Limits(bandwidth, 2 * side**3 / min(dense), empty)


def _times(calls: list[Callable[[], Tensor]], timer: Timer, seconds: float) -> list[float]:
    return [timing.low for timing in measure([Side("", [call]) for call in calls], timer, seconds=seconds)]
