"""block_sddmm in Triton: a program for some blocks of one block row side by side, over all tokens or a share of them.

Shares are summed afterwards, in order: the same bits in every run.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton.language as tl
from torch import Tensor

import triton
from ajour.ops.block_sddmm.triton_configs import Config, configs, default, parse, power_of_two, why_not
from ajour.ops.triton_tile import launch, unit_rows
from ajour.terms.pattern import Block
from ajour.terms.row_table import RowEntry

__all__ = ["configs", "run", "why_not"]


@triton.jit
def group_of(row_offsets, block_rows, TOGETHER: tl.constexpr):
    """(block row, first block, end of what may join it) of this program: one live block, or some of one block row."""
    if TOGETHER == 1:
        first = tl.program_id(0)
        block_row = tl.load(block_rows + first)
        end = first + 1
    else:
        block_row = tl.program_id(0)
        first = tl.load(row_offsets + block_row) + tl.program_id(1) * TOGETHER
        end = tl.load(row_offsets + block_row + 1)
    return block_row, first, end


@triton.jit(do_not_specialize=["m", "share"])
def block_sddmm(
    gradient,
    dy,
    x,
    row_offsets,
    block_columns,
    block_rows,
    m,
    n,
    k,
    dy_stride,
    x_stride,
    share,
    size,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    TILE_N: tl.constexpr,
    TOGETHER: tl.constexpr,
    SIDE: tl.constexpr,
    TILE_M: tl.constexpr,
    ADD: tl.constexpr,
):
    """gradient: [live, ROWS, COLS], += if ADD; each share of `share` tokens has its own, `size` elements apart."""
    block_row, first, end = group_of(row_offsets, block_rows, TOGETHER)
    if first >= end:
        return
    lane = tl.arange(0, TOGETHER * SIDE)
    p, within = first + lane // SIDE, lane % SIDE
    live = (p < end) & (within < COLS)
    VECTOR: tl.constexpr = 16 if COLS % 16 == 0 else 1
    columns = tl.load(block_columns + p, mask=p < end, other=0) * COLS + within
    columns = tl.max_contiguous(tl.multiple_of(columns, VECTOR), VECTOR)
    inside = tl.arange(0, TILE_N)
    rows = block_row * ROWS + inside
    begin = tl.program_id(2) * share
    stop = tl.minimum(begin + share, m)
    acc = tl.zeros((TOGETHER * SIDE, TILE_N), tl.float32)
    for token in range(begin, stop, TILE_M):
        tokens = token + tl.arange(0, TILE_M)
        exists = (tokens < stop)[:, None]
        xs = tl.load(
            x + tokens.to(tl.int64)[:, None] * x_stride + columns[None, :],
            mask=exists & (live & (columns < k))[None, :], other=0.0,
        )  # fmt: skip
        dys = tl.load(
            dy + tokens.to(tl.int64)[:, None] * dy_stride + rows[None, :],
            mask=exists & ((inside < ROWS) & (rows < n))[None, :], other=0.0,
        )  # fmt: skip
        acc = tl.dot(xs.trans(), dys, acc, input_precision="ieee")
    # zero beyond the weight, where Inf or NaN of one operand met the padding of the other
    acc = tl.where((columns < k)[:, None] & (rows < n)[None, :], acc, 0.0)
    at = gradient + tl.program_id(2).to(tl.int64) * size
    at += (p.to(tl.int64) * (ROWS * COLS) + within)[:, None] + (inside * COLS)[None, :]
    mask = live[:, None] & (inside < ROWS)[None, :]
    if ADD:
        acc += tl.load(at, mask=mask, other=0.0).to(tl.float32)
    tl.store(at, acc.to(gradient.dtype.element_ty), mask=mask)


def run(gradient: Tensor, dy: Tensor, x: Tensor, index: Sequence[Tensor], accumulate: bool, entry: RowEntry) -> None:
    """Writes or adds the live blocks of dy: [m, n].T @ x: [m, k]."""
    pattern = entry.pattern
    assert isinstance(pattern, Block)
    config = parse(entry.config) if entry.config else default(pattern, entry.dtype)
    dy, x, m, shares = unit_rows(dy), unit_rows(x), x.shape[0], config.shares
    share = triton.cdiv(triton.cdiv(m, shares), config.tokens) * config.tokens
    to = gradient if shares == 1 else gradient.new_empty((shares, *gradient.shape), dtype=torch.float32)
    launch(
        block_sddmm, (*_grid(entry, pattern, config, len(gradient)), shares), to, dy, x, *index[:3], m, entry.n,
        entry.k, dy.stride(0), x.stride(0), share, gradient.numel(), ROWS=pattern.rows, COLS=pattern.cols,
        TILE_N=power_of_two(pattern.rows), TOGETHER=config.together, SIDE=power_of_two(pattern.cols),
        TILE_M=config.tokens, ADD=accumulate and shares == 1, num_warps=config.warps, num_stages=config.stages,
    )  # fmt: skip
    if shares > 1:
        total = to.sum(0)
        gradient.copy_(gradient + total if accumulate else total)


def _grid(entry: RowEntry, pattern: Block, config: Config, live: int) -> tuple[int, int]:
    """Programs for every block, or for every group of them that some block row may have."""
    if config.together == 1:
        return live, 1
    groups = triton.cdiv(triton.cdiv(entry.k, pattern.cols), config.together)
    return triton.cdiv(entry.n, pattern.rows), groups
