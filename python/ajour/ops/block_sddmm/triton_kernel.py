"""block_sddmm in Triton: a program for some blocks of one block row side by side, over all tokens or a share of them.

Shares are summed afterwards, in order: the same bits in every run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton.language as tl
from torch import Tensor

import triton
from ajour.ops.triton_tile import launch, unit_rows
from ajour.terms.pattern import Block
from ajour.terms.problem import Problem
from ajour.terms.row_table import RowEntry

WIDE = 64  # columns of x side by side: what the tensor cores of sm_90 take at least
TOKENS = {2: 64, 4: 32}  # at a time, by bytes of an element
FEW = 264  # programs below which tokens are shared: two for each multiprocessor of an H100
MOST_SHARES = 16


@triton.jit(do_not_specialize=["m", "share"])
def block_sddmm(
    gradient,
    dy,
    x,
    row_offsets,
    block_columns,
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
    first = tl.load(row_offsets + tl.program_id(0)) + tl.program_id(1) * TOGETHER
    end = tl.load(row_offsets + tl.program_id(0) + 1)
    if first >= end:
        return
    lane = tl.arange(0, TOGETHER * SIDE)
    p, within = first + lane // SIDE, lane % SIDE
    live = (p < end) & (within < COLS)
    VECTOR: tl.constexpr = 16 if COLS % 16 == 0 else 1
    columns = tl.load(block_columns + p, mask=p < end, other=0) * COLS + within
    columns = tl.max_contiguous(tl.multiple_of(columns, VECTOR), VECTOR)
    inside = tl.arange(0, TILE_N)
    rows = tl.program_id(0) * ROWS + inside
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


def why_not(problem: Problem) -> str | None:
    """Refuses blocks that tensor cores would mostly multiply as padding, and those too large for one program."""
    assert isinstance(problem.pattern, Block)
    sides = problem.pattern.rows, problem.pattern.cols
    if min(sides) < 16 or max(sides) > 128:
        return f"the Triton kernel takes blocks of 16x16 to 128x128, this is {problem.pattern}"
    return None


class Shape(NamedTuple):
    """What one program computes: `together` blocks of `side` columns by `tile_n` rows, both padded to powers of two."""

    side: int
    together: int
    tile_n: int

    @property
    def warps(self) -> int:
        """As many as keep the sums in registers."""
        return 8 if self.side * self.together * self.tile_n >= 128 * 64 else 4


def shape_of(pattern: Block) -> Shape:
    """Blocks side by side until the tensor cores have what they take at least."""
    side, tile_n = (max(16, triton.next_power_of_2(each)) for each in (pattern.cols, pattern.rows))
    return Shape(side, max(1, WIDE // side), tile_n)


def run(gradient: Tensor, dy: Tensor, x: Tensor, index: Sequence[Tensor], accumulate: bool, entry: RowEntry) -> None:
    """Writes or adds the live blocks of dy: [m, n].T @ x: [m, k]."""
    pattern = entry.pattern
    assert isinstance(pattern, Block)
    dy, x, m, shape = unit_rows(dy), unit_rows(x), x.shape[0], shape_of(pattern)
    grid = (triton.cdiv(entry.n, pattern.rows), triton.cdiv(triton.cdiv(entry.k, pattern.cols), shape.together))
    tokens = TOKENS[x.element_size()]
    # by the number of blocks, which is known without asking the device
    shares = min(MOST_SHARES, max(1, FEW * shape.together // len(gradient)), triton.cdiv(m, 4 * tokens))
    share = triton.cdiv(triton.cdiv(m, shares), tokens) * tokens
    to = gradient if shares == 1 else gradient.new_empty((shares, *gradient.shape), dtype=torch.float32)
    launch(
        block_sddmm, (*grid, shares), to, dy, x, index[0], index[1], m, entry.n, entry.k, dy.stride(0), x.stride(0),
        share, gradient.numel(), ROWS=pattern.rows, COLS=pattern.cols, TILE_N=shape.tile_n, TOGETHER=shape.together,
        SIDE=shape.side, TILE_M=tokens, ADD=accumulate and shares == 1, num_warps=shape.warps, num_stages=3,
    )  # fmt: skip
    if shares > 1:
        total = to.sum(0)
        gradient.copy_(gradient + total if accumulate else total)
