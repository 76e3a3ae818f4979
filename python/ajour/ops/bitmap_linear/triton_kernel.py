"""bitmap_linear in Triton: bitmaps say which values of a dense tile to load, which meets x on the tensor cores.

That saves bytes, not products. Where Inf or NaN of x met one of the tile's zeros, the output is summed anew, product by
product over the stored places.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton.language as tl
from torch import Tensor

import triton
from ajour.ops.triton_door import parse_tile, tiles
from ajour.ops.triton_tile import any_nan, finish, launch, unit_rows
from ajour.terms.problem import Problem
from ajour.terms.row_table import RowEntry


@triton.jit
def count_bits(byte):
    """The number of bits set in each byte; arithmetic, so that the interpreter has it too."""
    pairs = byte - ((byte >> 1) & 0x55)
    quads = (pairs & 0x33) + ((pairs >> 2) & 0x33)
    return (quads + (quads >> 4)) & 0x0F


@triton.jit
def expand(values, bitmaps, offsets, tile_row, tile_rows, group, groups, row_bytes, TILE_N: tl.constexpr):
    """w, live: [TILE_N, 64] of one offset group; a bitmap's byte r is row r of its tile of 8x8, bit c column c."""
    line = group * 64 + tl.arange(0, 64)  # 8 tiles of 8 bytes
    inside = (tile_row < tile_rows)[:, None] & (line < row_bytes)[None, :]
    byte = tl.load(bitmaps + tile_row.to(tl.int64)[:, None] * row_bytes + line[None, :], mask=inside, other=0)
    byte = byte.to(tl.int32)
    count = count_bits(byte)
    first = tl.load(offsets + tile_row * groups + group, mask=tile_row < tile_rows, other=0)
    start = first[:, None] + tl.cumsum(count, 1) - count
    column = tl.arange(0, 8)[None, None, :]
    live = (byte[:, :, None] >> column) & 1
    place = start[:, :, None] + count_bits(byte[:, :, None] & ((1 << column) - 1))
    w = tl.load(values + place, mask=live != 0, other=0.0)
    # [tile row, tile and row in it, column] -> [out feature, in feature]
    w = w.reshape(TILE_N // 8, 8, 8, 8).permute(0, 2, 1, 3).reshape(TILE_N, 64)
    live = live.reshape(TILE_N // 8, 8, 8, 8).permute(0, 2, 1, 3).reshape(TILE_N, 64)
    return w, live


@triton.jit(do_not_specialize=["m"])
def bitmap_linear(
    x,
    y,
    bias,
    residual,
    values,
    bitmaps,
    offsets,
    m,
    n,
    k,
    stride,
    groups,
    row_bytes,
    TILE_M: tl.constexpr,
    TILE_N: tl.constexpr,
    ACTIVATION: tl.constexpr,
):
    """y: [m, n] from x: [m, k], rows `stride` apart; bitmaps as bytes: [ceil(n / 8), row_bytes], a row for 8 of w."""
    tiles_n, tile_rows = tl.cdiv(n, TILE_N), tl.cdiv(n, 8)
    tile = tl.program_id(0) % tiles_n
    rows = tl.program_id(0) // tiles_n * TILE_M + tl.arange(0, TILE_M)
    columns = tile * TILE_N + tl.arange(0, TILE_N)
    tile_row = tile * (TILE_N // 8) + tl.arange(0, TILE_N // 8)
    wide = tl.arange(0, 64)
    x_rows = x + rows.to(tl.int64) * stride
    acc = tl.zeros((TILE_M, TILE_N), tl.float32)
    for group in range(groups):
        w, _ = expand(values, bitmaps, offsets, tile_row, tile_rows, group, groups, row_bytes, TILE_N)
        cols = group * 64 + wide
        xs = tl.load(x_rows[:, None] + cols[None, :], mask=(rows < m)[:, None] & (cols < k)[None, :], other=0.0)
        acc = tl.dot(xs, w.trans(), acc, input_precision="ieee")
    if any_nan(acc):
        exact = tl.zeros((TILE_M, TILE_N), tl.float32)
        for group in range(groups):
            w, live = expand(values, bitmaps, offsets, tile_row, tile_rows, group, groups, row_bytes, TILE_N)
            for c in range(64):
                value = tl.sum(tl.where(wide[None, :] == c, w.to(tl.float32), 0.0), 1)
                stored = tl.sum(tl.where(wide[None, :] == c, live, 0), 1) != 0
                xs = tl.load(x_rows + group * 64 + c, mask=(rows < m) & (group * 64 + c < k), other=0.0)
                exact += tl.where(stored[None, :], xs.to(tl.float32)[:, None] * value[None, :], 0.0)
        acc = tl.where(acc != acc, exact, acc)
    finish(acc, y, bias, residual, rows, columns, m, n, ACTIVATION)


def why_not(problem: Problem) -> str | None:
    """Takes every weight."""
    return None


def configs(problem: Problem) -> tuple[str, ...]:
    """Tiles one offset group deep; float32 is multiplied outside the tensor cores, from registers, so it gets less."""
    return tiles(problem, (16,) if problem.dtype == "float32" else (64, 32, 16), (64,))


def run(
    x: Tensor, packed: Sequence[Tensor], bias: Tensor | None, residual: Tensor | None, activation: str, entry: RowEntry
) -> Tensor:
    """y: [m, n] for the canonical tensors of a BitmapMatrix."""
    tile, x = parse_tile(entry.config), unit_rows(x)
    values, bitmaps, offsets = packed
    m = x.shape[0]
    y = x.new_empty(m, entry.n)
    launch(
        bitmap_linear, triton.cdiv(m, tile.m) * triton.cdiv(entry.n, tile.n), x, y, bias, residual,
        values, bitmaps.view(torch.uint8), offsets, m, entry.n, entry.k, x.stride(0),
        triton.cdiv(entry.k, 64), bitmaps.shape[1] * 8,
        TILE_M=tile.m, TILE_N=tile.n, ACTIVATION=activation, num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    return y
