"""scaled_nm_linear for many rows on Hopper: `wgmma.sp` on e4m3, in CUTLASS's main loop; rows of x rounded before it.

Packed order "scaled_nm_sm90": the canonical values, their positions in columns of 128 (csrc/cuda/sm90/scaled.h), and
the scales in float32. y is bfloat16, as x is.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache, lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from ajour._native import HAS_CUDA, native
from ajour.formats.e4m3 import E4M3
from ajour.formats.scaled_nm import ScaledNMMatrix
from ajour.ops import decode
from ajour.terms.errors import KernelError
from ajour.terms.kernel import Kernel
from ajour.terms.pattern import Pattern
from ajour.terms.problem import Problem
from ajour.terms.row_table import RowEntry

CAPABILITY = (9, 0)  # sm_90a runs nowhere else
_ALIGNED = 16  # bytes: what TMA wants of every row
_N, _K = 8, 32  # so n and k are multiples of these: rows of y, and of the values, which are k / 2 bytes
_CELL = 16  # bytes of positions for 128 columns
_TILE_CELLS = 2  # a tile takes 256 columns, and finds a legal code for each
_FIRST_TWO = 0x44  # the code of positions 0 and 1, twice: for what is beyond the weight
_TILE_ROWS = 128
_CONFIG = re.compile(r"(tiles|stream) w([1248])")
_SWIZZLES = (1, 4, 8)


def _why_not(problem: Problem) -> str | None:
    if problem.device != "cuda":
        return f"it runs on CUDA, this layer is on {problem.device}"
    if problem.dtype != "bfloat16":
        return f"it takes bfloat16, this layer is {problem.dtype}"
    if problem.capability is not None and problem.capability != CAPABILITY:
        found = ".".join(map(str, problem.capability))
        return f"wgmma.sp exists on compute capability 9.0 alone, this device has {found}"
    if problem.n % _N or problem.k % _K:
        return f"it takes n in multiples of {_N} and k of {_K}, this weight is {problem.n}x{problem.k}"
    if not HAS_CUDA:
        return "ajour was built without CUDA; build it where nvcc is found, with AJOUR_CUDA=ON"
    if not native.has_sm90_scaled:
        return (
            "ajour was built without CUTLASS's headers: pip install --no-deps 'nvidia-cutlass>=4.2,<4.3', build again"
        )
    return None


def _configs(problem: Problem) -> tuple[str, ...]:
    """ "tiles w4": whole tiles, or ones that are cut along k ("stream"); tiles of x that go side by side."""
    widths = [width for width in _SWIZZLES if width == 1 or problem.m >= width * _TILE_ROWS]
    return ("stream w1", *(f"tiles w{width}" for width in widths))


@cache
def parse_config(config: str) -> tuple[bool, int]:
    """Whether tiles are cut, their width; the empty string is the default. Raises KernelError."""
    found = _CONFIG.fullmatch(config or "stream w1")
    if found is None:
        raise KernelError(f"{config!r} is no configuration of cuda_sm90 in e4m3; expected 'tiles w4' or the like")
    return found[1] == "stream", int(found[2])


def pack_positions(positions: Tensor, n: int) -> Tensor:
    """uint8 [2 ceil(k / 256), padded rows, 16] from the canonical [n, k / 8]."""
    cells = pad(positions, (0, -positions.shape[1] % (_TILE_CELLS * _CELL)), value=_FIRST_TWO).view(n, -1, _CELL)
    padded = native.Sm90Metadata(n, _CELL).bytes // _CELL
    return pad(cells.transpose(0, 1), (0, 0, 0, padded - n), value=_FIRST_TWO).contiguous()


def unpack_positions(metadata: Tensor, n: int, k: int) -> Tensor:
    """The inverse."""
    return metadata[:, :n].transpose(0, 1).reshape(n, -1)[:, : k // 8].contiguous()


def _prepack(matrix: ScaledNMMatrix, config: str) -> list[Tensor]:
    values, positions, scales = matrix.tensors().values()
    return [_aligned(values), pack_positions(positions, matrix.shape[0]), scales.float()]


def _unpack(packed: Sequence[Tensor], pattern: Pattern, shape: tuple[int, int]) -> ScaledNMMatrix:
    values, metadata, scales = packed
    tensors = {"values": values, "positions": unpack_positions(metadata, *shape), "scales": scales.bfloat16()}
    return ScaledNMMatrix(tensors, pattern, shape)


def _aligned(t: Tensor) -> Tensor:
    return t.clone() if t.data_ptr() % _ALIGNED else t


@cache
def _processors(device: int) -> int:
    count: int = torch.cuda.get_device_properties(device).multi_processor_count
    return count


@lru_cache(maxsize=4096)  # numbers of rows come and go
def _launch(m: int, n: int, k: int, config: str, device: int) -> tuple[Any, int]:
    """The call but for its addresses, and bytes of scratch."""
    call = native.Sm90ScaledCall(m, n, k, *parse_config(config), _processors(device))
    return call, call.scratch_bytes()


def round_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """x: [m, k] on CUDA in e4m3, and the scale of each row in float32; as formats/e4m3.py has it, in one kernel."""
    (m, k), device = x.shape, x.get_device()
    x = x if x.stride(1) == 1 else x.contiguous()
    width = -(-k // 8) * 8
    rounded, scales = x.new_empty(m, width, dtype=E4M3), x.new_empty(m, dtype=torch.float32)
    native.round_rows(
        x.data_ptr(),
        x.stride(0),
        m,
        k,
        width,
        x.dtype == torch.bfloat16,
        rounded.data_ptr(),
        scales.data_ptr(),
        device,
        decode.stream_of(device),
    )
    return rounded, scales


def _run(
    x: Tensor, packed: Sequence[Tensor], bias: Tensor | None, residual: Tensor | None, activation: str, entry: RowEntry
) -> Tensor:
    (m, k), device = x.shape, x.get_device()
    call, room = _launch(m, entry.n, k, entry.config, device)
    rounded, x_scales = round_rows(x)
    y = x.new_empty(m, entry.n)
    scratch = x.new_empty(room, dtype=torch.uint8) if room else None
    residual = None if residual is None else _aligned(residual)
    native.sm90_scaled_linear(
        call,
        *(each.data_ptr() for each in packed),
        rounded.data_ptr(),
        x_scales.data_ptr(),
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
    packing="scaled_nm_sm90",
    why_not=_why_not,
    prepack=_prepack,
    unpack=_unpack,
    run=_run,
    configs=_configs,
)
