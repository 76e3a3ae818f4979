"""What devices can do by their makers' specifications, with the sources."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from ajour.roofline.formula import Limits
from ajour.terms.errors import PlanError

HALF = ("bfloat16", "float16")
FIRST_SPARSE, FIRST_FP8 = (8, 0), (8, 9)  # compute capabilities with sparse tensor cores, with fp8 products


@dataclass(frozen=True)
class DeviceFacts:
    """bandwidth: bytes in a µs; rates: flops in a µs of a dense product, by dtype; empty: µs of a call without work.

    capability: of a CUDA device, (9, 0) on Hopper, None on a CPU. source: where the figures come from.
    """

    name: str
    bandwidth: float
    rates: Mapping[str, float]
    capability: tuple[int, int] | None
    source: str
    empty: float = 0.0

    def at(self, rate: float) -> Limits:
        """The limits of products at that rate."""
        return Limits(self.bandwidth, rate, self.empty)

    def sparse_gain(self, dtype: str) -> float:
        """How many times the dense rate 2:4 products run at: 2 on sparse tensor cores, which take 16-bit weights."""
        return 2.0 if dtype in HALF and (self.capability or (0, 0)) >= FIRST_SPARSE else 1.0

    @property
    def fp8_rate(self) -> float | None:
        """Flops in a µs of fp8 products, twice the 16-bit ones; None on a device without them."""
        half = next((self.rates[dtype] for dtype in HALF if dtype in self.rates), None)
        return 2 * half if half and (self.capability or (0, 0)) >= FIRST_FP8 else None


def _gpu(
    name: str, terabytes: float, half: float, single: float, capability: tuple[int, int], source: str
) -> DeviceFacts:
    """From TB/s, and TFLOP/s of dense 16-bit tensor products (float32 sums) and of float32 without tensor cores."""
    rates = {"bfloat16": half * 1e6, "float16": half * 1e6, "float32": single * 1e6}
    return DeviceFacts(name, terabytes * 1e6, rates, capability, source)


DEVICES = (
    _gpu("H100 SXM", 3.35, 989.4, 66.9, (9, 0), "NVIDIA H100 Tensor Core GPU datasheet and architecture whitepaper"),
    _gpu("H100 PCIe", 2.0, 756.0, 51.2, (9, 0), "NVIDIA H100 Tensor Core GPU datasheet and architecture whitepaper"),
    _gpu("H200", 4.8, 989.4, 66.9, (9, 0), "NVIDIA H200 Tensor Core GPU datasheet"),
    _gpu("A100 SXM", 2.039, 312.0, 19.5, (8, 0), "NVIDIA A100 Tensor Core GPU datasheet, 80 GB"),
    _gpu("A100 PCIe", 1.935, 312.0, 19.5, (8, 0), "NVIDIA A100 Tensor Core GPU datasheet, 80 GB"),
    _gpu("RTX 4090", 1.008, 165.2, 82.6, (8, 9), "NVIDIA Ada GPU architecture whitepaper"),
    _gpu("RTX 5090", 1.792, 209.5, 104.8, (12, 0), "NVIDIA RTX Blackwell GPU architecture whitepaper"),
)


def named(name: str) -> DeviceFacts:
    """The device of that name, however it is spelled; raises PlanError with all names."""
    for facts in DEVICES:
        if _plain(facts.name) == _plain(name):
            return facts
    raise PlanError(
        f"no facts are known of a device {name!r}; expected cpu, cuda, or one of "
        + ", ".join(facts.name for facts in DEVICES)
    )


def _plain(name: str) -> str:
    return re.sub(r"nvidia|geforce|[^a-z0-9]", "", name.lower())
