"""What the kernels for sm_90a share, of every op: which problems they take, their configurations, and one call.

`floats` says what a kernel multiplies ("bfloat16", "float16", "e4m3") for a layer of a dtype; a build has
configurations for each of them, or none.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache, lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ajour._native import HAS_CUDA, native
from ajour.memory import lent, stream_of
from ajour.ops.aligned import ALIGNED, aligned
from ajour.terms.errors import KernelError
from ajour.terms.pattern import NM
from ajour.terms.problem import ACTIVATION_CODES, Problem
from ajour.terms.row_table import RowEntry

CAPABILITY = (9, 0)  # sm_90a runs nowhere else
_SIZES = {"bfloat16": 2, "float16": 2, "e4m3": 1}  # in bytes
_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}  # of y
_N = 8  # n is a multiple of it, for the rows of y
_TILE = re.compile(r"(\d+)x(\d+)x\d+_(\d+)x\d+")
_CONFIG = re.compile(r"(\d+x\d+x\d+_\d+x\d+) (tiles|stream) w([1248])")
_SWIZZLES = (1, 2, 4, 8)
_NARROW, _MOST = 64, 4  # tiles of fewer rows are for few: each of them reads the weight, at most so many times
_MOST_EMPTY = 0.1  # of the tiles of features that a width asks for, beyond those that one tile at a time does


class Config(NamedTuple):
    """What was compiled, whether tiles are cut along k, and how many tiles of x go side by side."""

    built: str
    stream: bool
    width: int


def why_not(problem: Problem, floats: Mapping[str, str]) -> str | None:
    """None if the problem is one for these kernels in this build and on this device, else the reason."""
    if problem.device != "cuda":
        return f"it runs on CUDA, this layer is on {problem.device}"
    if problem.pattern != NM(2, 4):
        return f"wgmma.sp takes 2:4, this pattern is {problem.pattern}"
    if problem.dtype not in floats:
        return f"it takes {' and '.join(floats)}, this layer is {problem.dtype}"
    if problem.capability is not None and problem.capability != CAPABILITY:
        found = ".".join(map(str, problem.capability))
        return f"wgmma.sp exists on compute capability 9.0 alone, this device has {found}"
    if not (problem.n and problem.k):
        return f"it multiplies weights, this one is empty: {problem.n}x{problem.k}"
    multiplied = floats[problem.dtype]
    whole = 2 * ALIGNED // _SIZES[multiplied]  # a row of values, k / 2 of them, is a multiple of TMA's bytes
    if problem.n % _N or problem.k % whole:
        return f"it takes n in multiples of {_N} and k of {whole}, this weight is {problem.n}x{problem.k}"
    if not HAS_CUDA:
        return "ajour was built without CUDA; build it where nvcc is found, with AJOUR_CUDA=ON"
    if not any(native.sm90_configs.values()):
        return (
            "ajour was built without CUTLASS's headers: pip install --no-deps 'nvidia-cutlass>=4.2,<4.3', build again"
        )
    if not native.sm90_configs[multiplied]:
        built = ", ".join(name for name, there in native.sm90_configs.items() if there)
        return f"it was built for {built}, not for {multiplied}; build ajour again, with AJOUR_SM90_DTYPES=ALL"
    return None


def configs(problem: Problem, floats: Mapping[str, str]) -> tuple[str, ...]:
    """ "256x128x128_2x1 tiles w4": tile and cluster; whole tiles or cut ones; tiles of x that go side by side."""
    there = {
        built: tuple(int(side) for side in _TILE.fullmatch(built).groups())  # type: ignore[union-attr]
        for built in native.sm90_configs[floats[problem.dtype]]
    }
    wide_enough = {b: sides for b, sides in there.items() if sides[1] >= _NARROW or problem.m <= _MOST * sides[1]}
    found = []
    for built, (features, rows, cluster) in (wide_enough or there).items():
        clusters = -(-problem.n // (features * cluster))
        found.append(f"{built} stream w1")
        found += [
            f"{built} tiles w{width}"
            for width in _SWIZZLES
            if width == 1 or (problem.m >= width * rows and -clusters % width <= _MOST_EMPTY * clusters)
        ]
    return tuple(found)


def check(problem: Problem, config: str, floats: Mapping[str, str]) -> None:
    """Raises KernelError for a configuration that this build lacks."""
    parse(config, floats[problem.dtype])


@cache
def parse(config: str, multiplied: str) -> Config:
    """The empty string is the default. Raises KernelError for what is no configuration, or none of this build."""
    there = native.sm90_configs[multiplied]
    found = _CONFIG.fullmatch(config or f"{there[0]} stream w1")
    if found is None:
        raise KernelError(f"{config!r} is no configuration of cuda_sm90; expected '{there[0]} tiles w4' or the like")
    if found[1] not in there:
        raise KernelError(
            f"this build has no {found[1]} for {multiplied}, which {config!r} asks for, it has {', '.join(there)}; "
            "build with AJOUR_SM90_CONFIGS=ALL for all of them"
        )
    return Config(found[1], found[2] == "stream", int(found[3]))


def _rows_together(x: Tensor) -> Tensor:
    """x: [m, k], or a copy if TMA can't address its rows."""
    m, k = x.shape
    stride, of_one_column = x.stride()
    apart = m > 1 and (stride * x.element_size() % ALIGNED or stride < k)
    if of_one_column != 1 or apart or x.data_ptr() % ALIGNED:
        return x.clone(memory_format=torch.contiguous_format)
    return x


@cache
def _processors(device: int) -> int:
    count: int = torch.cuda.get_device_properties(device).multi_processor_count
    return count


@lru_cache(maxsize=4096)  # numbers of rows come and go
def _prepared(m: int, n: int, k: int, config: str, multiplied: str, device: int) -> tuple[Any, int]:
    """The call but for its addresses, and bytes of scratch. Keyed by numbers, which hash fast."""
    built, *rest = parse(config, multiplied)
    call = native.Sm90Call(multiplied, built, m, n, k, *rest, _processors(device))
    return call, call.scratch_bytes


def launch(
    x: Tensor,
    x_scales: Tensor | None,
    packed: Sequence[Tensor],
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
    entry: RowEntry,
    floats: Mapping[str, str],
) -> Tensor:
    """y: [m, n] of one call. x: [m, k] of what is multiplied; e4m3 has the scales of x: [m] and, in packed, of w: [n].

    Nothing here waits for the device, and all memory is torch's, so that a graph can hold the call.
    """
    x = _rows_together(x)
    (m, k), device = x.shape, x.get_device()
    call, room = _prepared(m, entry.n, k, entry.config, floats[entry.dtype], device)
    y = x.new_empty(m, entry.n, dtype=_DTYPES[entry.dtype])
    scratch = x.new_empty(room, dtype=torch.uint8) if room else None
    residual = None if residual is None else aligned(residual)
    native.sm90_linear(
        call,
        lent(packed[0]),
        lent(packed[1]),
        (0, 0) if x_scales is None else lent(packed[2]),
        x.data_ptr(),
        x.stride(0) if m > 1 else k,
        0 if x_scales is None else x_scales.data_ptr(),
        0 if bias is None else bias.data_ptr(),
        0 if residual is None else residual.data_ptr(),
        y.data_ptr(),
        0 if scratch is None else scratch.data_ptr(),
        ACTIVATION_CODES[activation],
        device,
        stream_of(device),
    )
    return y
