"""nm_linear at 2:4 for many rows on Hopper: `wgmma.sp`, the sparse tensor cores of sm_90a, in CUTLASS's main loop.

Packed order "nm_sm90": the canonical values themselves, [n, k / 2], and their positions as uint8 in the order of the
instruction (csrc/layout/sm90_metadata.h). It is not that of `cuda_decode`, which has values in the order of registers:
CUTLASS's main loop takes the weight from shared memory alone, row by row.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache, lru_cache
from typing import Any

import torch
from torch import Tensor

from ajour._native import HAS_CUDA, native
from ajour.formats.nm import NMMatrix
from ajour.ops import decode
from ajour.terms.errors import KernelError
from ajour.terms.kernel import Kernel
from ajour.terms.pattern import NM, Pattern
from ajour.terms.problem import Problem
from ajour.terms.row_table import RowEntry

CAPABILITY = (9, 0)  # sm_90a runs nowhere else
_ALIGNED = 16  # bytes: what TMA wants of every row
_N, _K = 8, 16  # so n and k are multiples of these: rows of y, and of the values, which are k / 2
_TILE = re.compile(r"(\d+)x(\d+)x\d+_(\d+)x\d+")
_CONFIG = re.compile(r"(\d+x\d+x\d+_\d+x\d+) (tiles|stream) w([1248])")
_SWIZZLES = (1, 2, 4, 8)
_MOST_EMPTY = 0.1  # of the tiles of features that a width asks for, beyond those that one tile at a time does


def _why_not(problem: Problem) -> str | None:
    if problem.device != "cuda":
        return f"it runs on CUDA, this layer is on {problem.device}"
    if problem.pattern != NM(2, 4):
        return f"wgmma.sp takes 2:4, this pattern is {problem.pattern}"
    if problem.dtype not in ("bfloat16", "float16"):
        return f"it takes bfloat16 and float16, this layer is {problem.dtype}"
    if problem.capability is not None and problem.capability != CAPABILITY:
        found = ".".join(map(str, problem.capability))
        return f"wgmma.sp exists on compute capability 9.0 alone, this device has {found}"
    if problem.n % _N or problem.k % _K:
        return f"it takes n in multiples of {_N} and k of {_K}, this weight is {problem.n}x{problem.k}"
    if not HAS_CUDA:
        return "ajour was built without CUDA; build it where nvcc is found, with AJOUR_CUDA=ON"
    if not native.sm90_configs:
        return (
            "ajour was built without CUTLASS's headers: pip install --no-deps 'nvidia-cutlass>=4.2,<4.3', build again"
        )
    return None


def _configs(problem: Problem) -> tuple[str, ...]:
    """ "256x128x128_2x1 tiles w4": tile and cluster; whole tiles or cut ones; tiles of x that go side by side."""
    found = []
    for built in native.sm90_configs:
        features, rows, cluster = (int(side) for side in _TILE.fullmatch(built).groups())  # type: ignore[union-attr]
        clusters = -(-problem.n // (features * cluster))
        found.append(f"{built} stream w1")
        found += [
            f"{built} tiles w{width}"
            for width in _SWIZZLES
            if width == 1 or (problem.m >= width * rows and -clusters % width <= _MOST_EMPTY * clusters)
        ]
    return tuple(found)


@cache
def parse_config(config: str) -> tuple[str, bool, int]:
    """What was compiled, whether tiles are cut, their width; the empty string is the default. Raises KernelError."""
    found = _CONFIG.fullmatch(config or f"{native.sm90_configs[0]} stream w1")
    if found is None:
        raise KernelError(f"{config!r} is no cuda_sm90 configuration; expected '256x128x128_2x1 tiles w4' or the like")
    return found[1], found[2] == "stream", int(found[3])


def _prepack(matrix: NMMatrix, config: str) -> list[Tensor]:
    values, positions = matrix.tensors().values()
    layout = native.Sm90Metadata(*matrix.shape)
    metadata = positions.new_empty(layout.bytes)
    addresses = positions.data_ptr(), metadata.data_ptr()
    if metadata.is_cuda:
        device = metadata.get_device()
        native.pack_sm90_metadata_cuda(layout, *addresses, device, decode.stream_of(device))
    else:
        native.pack_sm90_metadata(layout, *addresses)
    return [_aligned(values), metadata]


def _unpack(packed: Sequence[Tensor], pattern: Pattern, shape: tuple[int, int]) -> NMMatrix:
    (values, metadata), (n, k) = packed, shape
    layout = native.Sm90Metadata(n, k)
    positions = metadata.new_empty(n, k // 8)
    addresses = metadata.data_ptr(), positions.data_ptr()
    if metadata.is_cuda:
        device = metadata.get_device()
        native.unpack_sm90_metadata_cuda(layout, *addresses, device, decode.stream_of(device))
    else:
        native.unpack_sm90_metadata(layout, *addresses)
    return NMMatrix({"values": values, "positions": positions}, pattern, shape)


def _aligned(t: Tensor) -> Tensor:
    return t.clone() if t.data_ptr() % _ALIGNED else t


@cache
def _processors(device: int) -> int:
    count: int = torch.cuda.get_device_properties(device).multi_processor_count
    return count


@lru_cache(maxsize=4096)  # numbers of rows come and go
def _launch(m: int, n: int, k: int, config: str, bfloat16: bool, device: int) -> tuple[Any, str, int]:
    """The call but for its addresses, what was compiled, and bytes of scratch. Keyed by numbers, which hash fast."""
    built, stream, swizzle = parse_config(config)
    call = native.Sm90Call(m, n, k, stream, swizzle, _processors(device))
    return call, built, call.scratch_bytes(built, bfloat16)


def _run(
    x: Tensor, packed: Sequence[Tensor], bias: Tensor | None, residual: Tensor | None, activation: str, entry: RowEntry
) -> Tensor:
    (m, k), device, bfloat16 = x.shape, x.get_device(), entry.dtype == "bfloat16"
    stride, of_one_column = x.stride()
    if of_one_column != 1 or (m > 1 and (stride % _N or stride < k)) or x.data_ptr() % _ALIGNED:
        x, stride = x.clone(memory_format=torch.contiguous_format), k
    call, built, room = _launch(m, entry.n, k, entry.config, bfloat16, device)
    y = x.new_empty(m, entry.n)
    scratch = x.new_empty(room, dtype=torch.uint8) if room else None
    residual = None if residual is None else _aligned(residual)
    native.sm90_linear(
        call,
        built,
        bfloat16,
        packed[0].data_ptr(),
        packed[1].data_ptr(),
        x.data_ptr(),
        stride if m > 1 else k,
        0 if bias is None else bias.data_ptr(),
        0 if residual is None else residual.data_ptr(),
        y.data_ptr(),
        0 if scratch is None else scratch.data_ptr(),
        decode.ACTIVATION_CODES[activation],
        device,
        decode.stream_of(device),
    )
    return y


KERNEL = Kernel(
    name="cuda_sm90",
    packing="nm_sm90",
    why_not=_why_not,
    prepack=_prepack,
    unpack=_unpack,
    run=_run,
    configs=_configs,
)
