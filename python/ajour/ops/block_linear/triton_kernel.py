"""block_linear in Triton: one program for each tile of rows and (part of a) block row, over that row's live blocks."""

from __future__ import annotations

from collections.abc import Sequence

import triton.language as tl
from torch import Tensor

import triton
from ajour.ops.triton_door import parse_tile, tiles
from ajour.ops.triton_tile import finish, launch, unit_rows
from ajour.terms.pattern import Block
from ajour.terms.problem import Problem
from ajour.terms.row_table import RowEntry


@triton.jit(do_not_specialize=["m"])
def block_linear(
    x,
    y,
    bias,
    residual,
    blocks,
    row_offsets,
    block_columns,
    m,
    n,
    k,
    stride,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    TILE_M: tl.constexpr,
    TILE_N: tl.constexpr,
    TILE_K: tl.constexpr,
    ACTIVATION: tl.constexpr,
):
    """y: [m, n] from x: [m, k], rows `stride` apart, and BCSR blocks of ROWS x COLS."""
    parts: tl.constexpr = (ROWS + TILE_N - 1) // TILE_N
    tiles_n = tl.cdiv(n, ROWS) * parts
    tile = tl.program_id(0) % tiles_n
    block_row = tile // parts
    rows = tl.program_id(0) // tiles_n * TILE_M + tl.arange(0, TILE_M)
    inside = tile % parts * TILE_N + tl.arange(0, TILE_N)  # rows of the block
    deep = tl.arange(0, TILE_K)
    x_rows = x + rows.to(tl.int64)[:, None] * stride
    acc = tl.zeros((TILE_M, TILE_N), tl.float32)
    begin = tl.load(row_offsets + block_row).to(tl.int64)
    for p in range(begin, tl.load(row_offsets + block_row + 1).to(tl.int64)):
        first = tl.load(block_columns + p) * COLS
        block = blocks + p * (ROWS * COLS)
        for start in tl.static_range(0, COLS, TILE_K):
            cols = start + deep
            live = (cols < COLS) & (first + cols < k)
            xs = tl.load(x_rows + (first + cols)[None, :], mask=(rows < m)[:, None] & live[None, :], other=0.0)
            inner = (inside < ROWS)[:, None] & (cols < COLS)[None, :]
            ws = tl.load(block + inside[:, None] * COLS + cols[None, :], mask=inner, other=0.0)
            acc = tl.dot(xs, ws.trans(), acc, input_precision="ieee")
    columns = tl.where(inside < ROWS, block_row * ROWS + inside, n)
    finish(acc, y, bias, residual, rows, columns, m, n, ACTIVATION)


def why_not(problem: Problem) -> str | None:
    """Refuses blocks that tensor cores would mostly multiply as padding."""
    assert isinstance(problem.pattern, Block)
    if min(problem.pattern.rows, problem.pattern.cols) < 16:
        return f"the Triton kernel takes blocks of at least 16x16, this is {problem.pattern}"
    return None


def configs(problem: Problem) -> tuple[str, ...]:
    """Tiles no larger than a block."""
    assert isinstance(problem.pattern, Block)
    sides = [triton.next_power_of_2(side) for side in (problem.pattern.rows, problem.pattern.cols)]
    return tiles(problem, tuple({min(sides[0], side): None for side in (64, 32)}), (min(sides[1], 64),))


def run(
    x: Tensor, packed: Sequence[Tensor], bias: Tensor | None, residual: Tensor | None, activation: str, entry: RowEntry
) -> Tensor:
    """y: [m, n] for the canonical tensors of a BlockMatrix."""
    pattern, tile, x = entry.pattern, parse_tile(entry.config), unit_rows(x)
    assert isinstance(pattern, Block)
    m = x.shape[0]
    y = x.new_empty(m, entry.n)
    tile_n = min(tile.n, triton.next_power_of_2(pattern.rows))
    programs = triton.cdiv(m, tile.m) * triton.cdiv(entry.n, pattern.rows) * triton.cdiv(pattern.rows, tile_n)
    launch(
        block_linear, programs, x, y, bias, residual, *packed[:3], m, entry.n, entry.k, x.stride(0),
        ROWS=pattern.rows, COLS=pattern.cols, TILE_M=tile.m, TILE_N=tile_n,
        TILE_K=min(tile.k, triton.next_power_of_2(pattern.cols)), ACTIVATION=activation,
        num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    return y
