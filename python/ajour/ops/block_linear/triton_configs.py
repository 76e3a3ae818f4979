"""Configurations of the Triton kernels of block_linear: the tile, tensor descriptors or gathered loads, tf32 or not."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

from ajour.ops.triton_door import Tile, parse_tile
from ajour.terms.errors import KernelError
from ajour.terms.kernel import config_of
from ajour.terms.pattern import Block
from ajour.terms.problem import Problem

_SHARED = {False: 96 * 1024, True: 200 * 1024}  # bytes of tiles in flight: on every card, and on sm_90 and sm_100


def power_of_two(side: int) -> int:
    """The least power of two that is at least `side`, and at least 16."""
    return max(16, 1 << (side - 1).bit_length())


@dataclass(frozen=True)
class Config:
    """A tile; tma: x and blocks come by tensor descriptors; tf32: float32 is rounded for the tensor cores."""

    tile: Tile = Tile()  # noqa: RUF009, it is frozen
    tma: bool = False
    tf32: bool = False

    def __str__(self) -> str:
        return str(self.tile) + " tma" * self.tma + " tf32" * self.tf32

    @property
    def per_processor(self) -> int:
        """Programs for each multiprocessor: 16 warps hide each other's latencies."""
        return max(1, 16 // self.tile.warps)

    def within(self, out: int, deep: int) -> Config:
        """Cut to blocks with `out` columns of y and `deep` of x: the box of a descriptor stays in a block."""
        depth = min(self.tile.k, deep) if self.tma else self.tile.k
        return replace(self, tile=replace(self.tile, n=min(self.tile.n, power_of_two(out)), k=depth))

    def fits(self, dtype: str, is_large: bool) -> bool:
        """Whether the tiles of x and w in flight fit shared memory."""
        tile, size = self.tile, 4 if dtype == "float32" else 2
        return (tile.m + tile.n) * tile.k * size * tile.stages <= _SHARED[is_large]


@cache
def parse(config: str) -> Config:
    """The inverse of `str(config)`; the empty string is the default. Raises KernelError."""
    words = config.split()
    found = Config(parse_tile(" ".join(words[:5])), "tma" in words[5:], "tf32" in words[5:])
    if config and str(found) != config:
        raise KernelError(f"{config!r} is no configuration; expected {str(Config())!r} or its like, then tma, tf32")
    return found


def check(problem: Problem, config: str) -> None:
    """Raises KernelError for a configuration that is none, or needs tensor descriptors that this problem can't have."""
    assert isinstance(problem.pattern, Block)
    capability, itemsize = problem.capability or (0, 0), 4 if problem.dtype == "float32" else 2
    for product, width in (("forward", problem.k), ("dx", problem.n)):
        named = config_of(config, product)
        refusal = no_descriptors(problem.pattern, (width,), itemsize, capability) if parse(named).tma else None
        if refusal:
            raise KernelError(f"block_linear can't run the configuration {named!r}: {refusal}")


def why_not(problem: Problem) -> str | None:
    """Refuses blocks that tensor cores would mostly multiply as padding."""
    assert isinstance(problem.pattern, Block)
    if min(problem.pattern.rows, problem.pattern.cols) < 16:
        return f"the Triton kernel takes blocks of at least 16x16, this is {problem.pattern}"
    return None


def no_descriptors(pattern: Block, widths: tuple[int, ...], itemsize: int, capability: tuple[int, int]) -> str | None:
    """Why x, of one of these widths, and the blocks can't come by tensor descriptors; None where they can."""
    sides = pattern.rows, pattern.cols
    if sides != (power_of_two(pattern.rows), power_of_two(pattern.cols)):
        return f"tensor descriptors take blocks whose sides are powers of two from 16 on, these are {pattern}"
    if any(width * itemsize % 16 for width in widths):
        return f"tensor descriptors take rows of a multiple of 16 bytes, these are {max(widths)}x{itemsize}"
    if capability < (9, 0):
        return "tensor descriptors need compute capability 9.0, this device has " + ".".join(map(str, capability))
    return None


def configs(problem: Problem) -> tuple[str, ...]:
    """Tiles for so many rows, the likely best one first; without tf32, which only a caller may ask for.

    Few rows: narrow tiles, so that every multiprocessor reads some of the weight. float32 is multiplied outside the
    tensor cores, where large tiles spill registers (ptxas 12.8).
    """
    assert isinstance(problem.pattern, Block)
    out, deep = power_of_two(problem.pattern.rows), power_of_two(problem.pattern.cols)
    if problem.dtype == "float32":
        tiles = [Tile(16 if problem.m <= 16 else 32, min(out, 32), 32, 4, 3), Tile(64, min(out, 32), 32, 8, 2)]
    elif problem.m <= 64:
        m = 16 if problem.m <= 16 else 32 if problem.m <= 32 else 64
        widths = dict.fromkeys((min(out, 32), 16, min(out, 64)))
        tiles = [Tile(m, n, 64, 4, stages) for n in widths for stages in (4, 3)]
    else:
        shapes = ((128, 64, 8, 3), (128, 32, 8, 4), (64, 64, 4, 3), (64, 32, 4, 4))
        tiles = [Tile(m, min(out, 128), depth, warps, stages) for m, depth, warps, stages in shapes]
    found = [Config(tile) for tile in tiles]
    capability, itemsize = problem.capability or (0, 0), 4 if problem.dtype == "float32" else 2
    # both widths, as dx may go by the configuration of the forward
    refusal = no_descriptors(problem.pattern, (problem.n, problem.k), itemsize, capability)
    if problem.dtype != "float32" and refusal is None:
        described = [Config(replace(tile, k=min(tile.k, deep), stages=4), tma=True) for tile in tiles]
        # small blocks leave too little to each step of one block at a time
        found = [*described, *found] if deep >= 64 else [*found, *described]
    return tuple(dict.fromkeys(str(config) for config in found if config.fits(problem.dtype, capability[0] in (9, 10))))
