"""nm_linear in Triton: values and positions become a dense tile in registers, which meets x on the tensor cores.

That saves bytes, not products. Where Inf or NaN of x met one of the tile's zeros, the output is summed anew, product by
product over the stored places.
"""

from __future__ import annotations

from collections.abc import Sequence

import triton.language as tl
from torch import Tensor

import triton
from ajour.ops.triton_door import parse_tile, tiles
from ajour.ops.triton_tile import any_nan, finish, launch, unit_rows
from ajour.terms.pattern import NM
from ajour.terms.problem import Problem
from ajour.terms.row_table import RowEntry


@triton.jit
def position(positions, entry, live, BITS: tl.constexpr):
    """Where in its group the stored value `entry` of a row stands; BITS bits at bit entry * BITS of the row's bytes."""
    bit = entry * BITS
    code = tl.load(positions + bit // 8, mask=live, other=0).to(tl.int32)
    if 8 % BITS != 0:  # the bits may run on into the next byte
        ends = (bit % 8 + BITS > 8) & live
        code |= tl.load(positions + bit // 8 + 1, mask=ends, other=0).to(tl.int32) << 8
    return (code >> (bit % 8)) & ((1 << BITS) - 1)


@triton.jit(do_not_specialize=["m"])
def nm_linear(
    x,
    y,
    bias,
    residual,
    values,
    positions,
    m,
    n,
    k,
    stride,
    groups,
    row_bytes,
    KEEP: tl.constexpr,
    GROUP: tl.constexpr,
    BITS: tl.constexpr,
    TILE_M: tl.constexpr,
    TILE_N: tl.constexpr,
    TILE_G: tl.constexpr,
    ACTIVATION: tl.constexpr,
):
    """y: [m, n] from x: [m, k], rows `stride` apart; values: [n, groups * KEEP], positions: [n, row_bytes]."""
    WIDTH: tl.constexpr = 1 << BITS  # of a group in the tile, GROUP padded to a power of two
    tiles_n = tl.cdiv(n, TILE_N)
    rows = tl.program_id(0) // tiles_n * TILE_M + tl.arange(0, TILE_M)
    columns = tl.program_id(0) % tiles_n * TILE_N + tl.arange(0, TILE_N)
    x_rows = x + rows.to(tl.int64)[:, None] * stride
    value_rows = values + columns.to(tl.int64) * (groups * KEEP)
    position_rows = positions + columns.to(tl.int64) * row_bytes
    wide = tl.arange(0, TILE_G * WIDTH)
    acc = tl.zeros((TILE_M, TILE_N), tl.float32)
    for first in range(0, groups, TILE_G):
        group = first + tl.arange(0, TILE_G)
        live = (columns < n)[:, None] & (group < groups)[None, :]
        w = tl.zeros((TILE_N, TILE_G, WIDTH), values.dtype.element_ty)
        for e in tl.static_range(KEEP):
            entry = (group * KEEP + e)[None, :]
            value = tl.load(value_rows[:, None] + entry, mask=live, other=0.0)
            place = position(position_rows[:, None], entry, live, BITS)
            w = tl.where(place[:, :, None] == tl.arange(0, WIDTH)[None, None, :], value[:, :, None], w)
        cols = (first + wide // WIDTH) * GROUP + wide % WIDTH
        exists = (wide % WIDTH < GROUP) & (first + wide // WIDTH < groups) & (cols < k)
        xs = tl.load(x_rows + cols[None, :], mask=(rows < m)[:, None] & exists[None, :], other=0.0)
        acc = tl.dot(xs, w.reshape(TILE_N, TILE_G * WIDTH).trans(), acc, input_precision="ieee")
    if any_nan(acc):
        exact = tl.zeros((TILE_M, TILE_N), tl.float32)
        for entry in range(groups * KEEP):
            value = tl.load(value_rows + entry, mask=columns < n, other=0.0).to(tl.float32)
            cols = entry // KEEP * GROUP + position(position_rows, entry, columns < n, BITS)
            xs = tl.load(x_rows + cols[None, :], mask=(rows < m)[:, None] & (cols < k)[None, :], other=0.0)
            exact += xs.to(tl.float32) * value[None, :]
        acc = tl.where(acc != acc, exact, acc)
    finish(acc, y, bias, residual, rows, columns, m, n, ACTIVATION)


def why_not(problem: Problem) -> str | None:
    """Takes every N:M pattern."""
    return None


def configs(problem: Problem) -> tuple[str, ...]:
    """Tiles that hold whole groups, so small that nothing spills: float32 is multiplied outside the tensor cores."""
    assert isinstance(problem.pattern, NM)
    if problem.dtype == "float32":
        return tiles(problem, (32,), (32,))
    return tiles(problem, (64, 32), (64, 32)) if problem.pattern.keep <= 4 else tiles(problem, (32, 64), (32,))


def run(
    x: Tensor, packed: Sequence[Tensor], bias: Tensor | None, residual: Tensor | None, activation: str, entry: RowEntry
) -> Tensor:
    """y: [m, n] for the canonical tensors of an NMMatrix."""
    pattern, tile, x = entry.pattern, parse_tile(entry.config), unit_rows(x)
    assert isinstance(pattern, NM)
    values, positions = packed
    m, bits = x.shape[0], (pattern.group - 1).bit_length()
    y = x.new_empty(m, entry.n)
    launch(
        nm_linear, triton.cdiv(m, tile.m) * triton.cdiv(entry.n, tile.n), x, y, bias, residual, values, positions,
        m, entry.n, entry.k, x.stride(0), triton.cdiv(entry.k, pattern.group), positions.shape[1],
        KEEP=pattern.keep, GROUP=pattern.group, BITS=bits, TILE_M=tile.m, TILE_N=tile.n, TILE_G=tile.k >> bits,
        ACTIVATION=activation, num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    return y
