"""scaled_nm_linear for many rows on Hopper: `wgmma.sp` on e4m3, in CUTLASS's main loop; rows of x rounded before it.

Packed order "scaled_nm_sm90": the canonical values, their positions in columns of 128 (csrc/layout/sm90_metadata.h),
and the scales in float32. y is bfloat16, as x is.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import pad

from ajour._native import native
from ajour.formats.e4m3 import E4M3
from ajour.formats.scaled_nm import ScaledNMMatrix
from ajour.memory import stream_of
from ajour.ops import sm90
from ajour.ops.aligned import aligned
from ajour.terms.kernel import Kernel
from ajour.terms.pattern import Pattern
from ajour.terms.row_table import RowEntry

_FLOATS = {"bfloat16": "e4m3"}
_CELL = 16  # bytes of positions for 128 columns
_TILE_CELLS = 2  # a tile takes 256 columns, and finds a legal code for each
_FIRST_TWO = 0x44  # the code of positions 0 and 1, twice: for what is beyond the weight


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
    return [aligned(values), pack_positions(positions, matrix.shape[0]), scales.float()]


def _unpack(packed: Sequence[Tensor], pattern: Pattern, shape: tuple[int, int]) -> ScaledNMMatrix:
    values, metadata, scales = packed
    tensors = {"values": values, "positions": unpack_positions(metadata, *shape), "scales": scales.bfloat16()}
    return ScaledNMMatrix(tensors, pattern, shape)


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
        stream_of(device),
    )
    return rounded, scales


def _run(
    x: Tensor, packed: Sequence[Tensor], bias: Tensor | None, residual: Tensor | None, activation: str, entry: RowEntry
) -> Tensor:
    rounded, x_scales = round_rows(x)
    return sm90.launch(rounded, x_scales, packed, bias, residual, activation, entry, _FLOATS)


KERNEL = Kernel(
    name="cuda_sm90",
    packing="scaled_nm_sm90",
    why_not=partial(sm90.why_not, floats=_FLOATS),
    prepack=_prepack,
    unpack=_unpack,
    run=_run,
    configs=partial(sm90.configs, floats=_FLOATS),
    check=partial(sm90.check, floats=_FLOATS),
)
