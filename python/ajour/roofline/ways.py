"""The ways to hold and multiply a weight: how many bits each needs, how many multiplications, and at which rate."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ajour.roofline.facts import DeviceFacts
from ajour.roofline.formula import Limits
from ajour.terms.pattern import NM, Block

BITS = {"float32": 32, "float64": 64}  # the others have 16
INT4_BITS = 4.125  # a 16-bit scale for each 128 weights
DENSITIES = (0.5, 0.2, 0.1)
NMS = (NM(2, 4), NM(1, 4))
BLOCKS = (Block(32, 32), Block(64, 64))
HEADLINE = ("2:4", "unstructured 80 %", "block 64x64 80 %", "fp8 dense", "int4 dense")
# bytes in a clock of one multiprocessor: its shared memory gives 128; feeding wgmma with a 64 x 16 tile of x takes
# 2048 in the N / 2 clocks that a block of N rows keeps it busy, and its weights 64 in every one
SHARED_MEMORY, TILE, WEIGHTS = 128.0, 2048.0, 64.0


@dataclass(frozen=True)
class Way:
    """bits: of memory for one weight of the dense shape; work: its share of the dense multiplications; rate: flops/µs.

    rate is None where the device has no such product.
    """

    name: str
    bits: float
    work: float
    rate: float | None


def dense(facts: DeviceFacts, dtype: str) -> Way:
    """The weight as it is."""
    return Way("dense", BITS.get(dtype, 16), 1.0, facts.rates[dtype])


def ways(facts: DeviceFacts, dtype: str) -> list[Way]:
    """All others, sparse in the weights' own dtype, then quantized and dense."""
    stock = dense(facts, dtype)
    sparse = [*_nm(facts, dtype), *_unstructured(facts, stock), *_blocks(facts, stock)]
    return [*sparse, Way("fp8 dense", 8.0, 1.0, facts.fp8_rate), Way("int4 dense", INT4_BITS, 1.0, stock.rate)]


def _nm(facts: DeviceFacts, dtype: str) -> Iterator[Way]:
    """Values and their positions. 2:4 and what fits into it runs on sparse tensor cores; a CPU multiplies what is
    kept.
    """
    stock = dense(facts, dtype)
    for pattern in NMS:
        kept = pattern.keep / pattern.group
        bits = kept * (stock.bits + (pattern.group - 1).bit_length())
        work = kept if facts.capability is None else 1 / facts.sparse_gain(dtype)
        yield Way(str(pattern), bits, work, stock.rate)


def _unstructured(facts: DeviceFacts, stock: Way) -> Iterator[Way]:
    """Values and one bit for each place. Tensor cores take whole tiles, zeros included; a CPU can skip them."""
    for density in DENSITIES:
        work = density if facts.capability is None else 1.0
        yield Way(f"unstructured {1 - density:.0%}".replace("%", " %"), density * stock.bits + 1, work, stock.rate)


def _blocks(facts: DeviceFacts, stock: Way) -> Iterator[Way]:
    """Kept blocks and their columns; on Hopper narrow blocks can't be fed at the full rate."""
    assert stock.rate is not None
    for pattern in BLOCKS:
        fed = SHARED_MEMORY / (TILE / (pattern.rows / 2) + WEIGHTS) if facts.capability == (9, 0) else 1.0
        for density in DENSITIES:
            bits = density * (stock.bits + 32 / (pattern.rows * pattern.cols))
            name = f"{pattern} {1 - density:.0%}".replace("%", " %")
            yield Way(name, bits, density, min(1.0, fed) * stock.rate)


def best_us(way: Way, facts: DeviceFacts, m: int, n: int, k: int, dtype: str) -> tuple[float, str] | None:
    """(µs at best, what decides) for y: [m, n] = x: [m, k] @ w: [n, k].T; None where the device can't run it."""
    if way.rate is None:
        return None
    nbytes, flops = n * k * way.bits / 8 + (m * k + m * n) * BITS.get(dtype, 16) / 8, 2 * m * n * k * way.work
    at: Limits = facts.at(way.rate)
    return at.us(nbytes, flops), at.bound(nbytes, flops)
