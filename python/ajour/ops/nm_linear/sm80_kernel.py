"""nm_linear at 2:4 for many rows, in CUDA: the sparse tensor cores by `mma.sp`, as Ampere and Ada have them.

It runs on every later card too; where `wgmma.sp` is there (Hopper), that feeds them better, and a plan takes this one
only if it measures best. It reads the slabs of the decode kernel, so a layer that has both holds its weight once. y may
have any number of rows and features. Stores are 16 bytes wide where n is a multiple of 8, else 2 bytes; x is copied
once where its rows don't begin at multiples of 16 bytes, as with a k that is no multiple of 8.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache, lru_cache
from typing import Any, NamedTuple

from torch import Tensor

from ajour._native import HAS_CUDA, native
from ajour.memory import lent, stream_of
from ajour.ops import decode
from ajour.ops.nm_linear import slabs
from ajour.terms.errors import KernelError
from ajour.terms.kernel import Kernel
from ajour.terms.pattern import NM
from ajour.terms.problem import ACTIVATION_CODES, Problem
from ajour.terms.row_table import RowEntry

LEAST_ROWS = 33  # for fewer, the decode kernel reads the same slabs with less to wait for
_CHUNK = 8  # elements that one copy moves
_CONFIG = re.compile(r"n(\d+) m(\d+) s(\d+)(?: c(\d+))?")
_DEFAULT = "n128 m128 s3"
# out features x rows of a block -> panels of 64 out features, groups of warps along the rows, rows of each group
_TILES = {(256, 128): (4, 2, 64), (128, 256): (2, 4, 64), (128, 128): (2, 2, 64), (128, 64): (2, 2, 32)}


class Config(NamedTuple):
    """A tile, the most stages, and blocks for each processor that share all work evenly; 0: a block for each tile."""

    tile: tuple[int, int, int]
    stages: int
    blocks: int


@cache
def parse_config(config: str) -> Config:
    """ "n128 m128 s3": 128 out features by 128 rows, three stages; "c2" ends one that is cut into even stripes."""
    found = _CONFIG.fullmatch(config or _DEFAULT)
    tile = _TILES.get((int(found[1]), int(found[2]))) if found else None
    if found is None or tile is None:
        raise KernelError(f"{config!r} is no configuration of cuda_sm80; expected something like {_DEFAULT!r}")
    return Config(tile, int(found[3]), int(found[4] or 0))


def _check(problem: Problem, config: str) -> None:
    parse_config(config)


def _why_not(problem: Problem) -> str | None:
    if problem.device != "cuda":
        return f"it runs on CUDA, this layer is on {problem.device}"
    if not HAS_CUDA:
        return "ajour was built without CUDA; build it where nvcc is found, with AJOUR_CUDA=ON"
    if problem.pattern != NM(2, 4):
        return f"it takes 2:4, which the sparse tensor cores are made for; this pattern is {problem.pattern}"
    if problem.dtype not in ("bfloat16", "float16"):
        return f"it takes bfloat16 and float16, this layer is {problem.dtype}"
    if not (problem.n and problem.k):
        return f"it multiplies weights, this one is empty: {problem.n}x{problem.k}"
    if problem.m < LEAST_ROWS:
        return f"it is for {LEAST_ROWS} rows and more, these are {problem.m} rows"
    if problem.capability is not None and problem.capability < (8, 0):
        found = ".".join(map(str, problem.capability))
        return f"it needs compute capability 8.0, this device has {found}"
    return None


def _configs(problem: Problem) -> tuple[str, ...]:
    """Tiles no higher than the rows ask for; even stripes where a tile for each block may leave processors idle."""
    if problem.m <= 64:
        return ("n128 m64 s4 c2", "n128 m64 s4")
    if problem.m <= 128:
        return ("n128 m64 s4 c2", "n128 m128 s3 c2", "n128 m128 s3", "n128 m64 s4")
    large = ("n128 m128 s3", "n256 m128 s4", "n128 m128 s3 c2", "n256 m128 s4 c1", "n128 m256 s3")
    return large if problem.m > 1024 else (*large, "n128 m64 s4 c2", "n128 m64 s4")


@lru_cache(4096)
def _launch(n: int, k: int, m: int, config: str, device: int) -> tuple[Any, int]:
    """Shape, and elements of scratch."""
    tile, stages, blocks = parse_config(config)
    shape = native.Sm80Shape(m, n, k, *tile, stages, blocks, decode.limits_of(device))
    return shape, shape.scratch_bytes // 2


def aligned(x: Tensor) -> Tensor:
    """x: [m, k] if its rows begin at multiples of 16 bytes, else a copy whose rows do."""
    m, k = x.shape
    if x.stride(1) == 1 and x.stride(0) % _CHUNK == 0 and x.data_ptr() % (2 * _CHUNK) == 0:
        return x
    held = x.new_empty(m, -(-k // _CHUNK) * _CHUNK)[:, :k]
    return held.copy_(x)


def _run(
    x: Tensor, packed: Sequence[Tensor], bias: Tensor | None, residual: Tensor | None, activation: str, entry: RowEntry
) -> Tensor:
    x = aligned(x)
    m, n, device = x.shape[0], entry.n, x.get_device()
    shape, room = _launch(n, entry.k, m, entry.config, device)
    y = x.new_empty(m, n)
    scratch = x.new_empty(room) if room else None
    native.nm_sm80(
        shape,
        lent(packed[0]),
        n,
        entry.k,
        x.data_ptr(),
        x.stride(0),
        m,
        0 if bias is None else bias.data_ptr(),
        0 if residual is None else residual.data_ptr(),
        y.data_ptr(),
        0 if scratch is None else scratch.data_ptr(),
        entry.dtype == "bfloat16",
        ACTIVATION_CODES[activation],
        device,
        stream_of(device),
    )
    return y


KERNEL = Kernel(
    name="cuda_sm80",
    packing=slabs.PACKING,
    why_not=_why_not,
    prepack=slabs.prepack,
    unpack=slabs.unpack,
    run=_run,
    configs=_configs,
    check=_check,
)
