"""The formula of every limit: t_empty + max(bytes / bandwidth, flops / rate)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """bandwidth: bytes in a µs that can be moved from memory; rate: additions and multiplications in a µs of a
    product; empty: µs of a call that has nothing to compute.
    """

    bandwidth: float
    rate: float
    empty: float = 0.0

    def us(self, nbytes: float, flops: float) -> float:
        """t_empty + max(bytes / bandwidth, flops / rate): no kernel can be faster."""
        return self.empty + max(nbytes / self.bandwidth, flops / self.rate)

    def bound(self, nbytes: float, flops: float) -> str:
        """What decides: "bytes" or "arithmetic"."""
        return "bytes" if nbytes / self.bandwidth >= flops / self.rate else "arithmetic"

    def best(self, other: Limits | None) -> Limits:
        """The better of both: other programs only ever make a device look slower."""
        if other is None:
            return self
        bandwidth, rate = max(self.bandwidth, other.bandwidth), max(self.rate, other.rate)
        return Limits(bandwidth, rate, min(self.empty, other.empty))
