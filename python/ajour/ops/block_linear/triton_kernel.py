"""block_linear and its transpose in Triton: persistent programs, each over tiles of tokens and (part of) a block row.

Block rows are taken longest first, so that uneven ones end together; column indices are loaded a step ahead of the
blocks that they place. Small blocks are multiplied side by side, with the columns of x that they meet gathered into one
tile; blocks whose sides are powers of two may come by tensor descriptors (TMA on sm_90).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

import triton
from ajour.ops.block_linear.scheduled import remembered_order
from ajour.ops.block_linear.triton_configs import Config, configs, no_descriptors, parse, why_not
from ajour.ops.triton_tile import capability_of, finish, launch, unit_rows
from ajour.terms.errors import KernelError
from ajour.terms.kernel import config_of
from ajour.terms.pattern import Block
from ajour.terms.row_table import RowEntry

__all__ = ["configs", "run", "run_t", "why_not"]

GROUP_M = 8  # tiles of tokens that go over all of the weight together: their part of x stays in L2


@triton.jit
def place_of(p, end, order, places):
    """Number and place of the block at position p of its list; block 0 beyond the list."""
    b = p
    if order is not None:
        b = tl.load(order + p, mask=p < end, other=0)
    return b, tl.load(places + b, mask=p < end, other=0)


@triton.jit
def tile_of(tile, m, tiles_n, TILE_M: tl.constexpr, GROUP: tl.constexpr):
    """(tile of tokens, tile of columns of y) number `tile`: all columns for GROUP tiles of tokens, then the next."""
    tiles_m = tl.cdiv(m, TILE_M)
    first = tile // (GROUP * tiles_n) * GROUP
    size = tl.minimum(tiles_m - first, GROUP)
    inside = tile % (GROUP * tiles_n)
    return first + inside % size, inside // size


@triton.jit(do_not_specialize=["m"])
def block_linear(
    y,
    x,
    bias,
    residual,
    blocks,
    offsets,
    places,
    order,
    schedule,
    m,
    out_width,
    in_width,
    stride,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    TILE_M: tl.constexpr,
    TILE_N: tl.constexpr,
    TILE_K: tl.constexpr,
    GROUP: tl.constexpr,
    TMA: tl.constexpr,
    PRECISION: tl.constexpr,
    ACTIVATION: tl.constexpr,
):
    """y: [m, out_width] from x: [m, in_width], rows `stride` apart, and BCSR blocks (by columns if TRANSPOSED).

    With TMA x and blocks: [live * ROWS, COLS] are tensor descriptors.
    """
    OUT: tl.constexpr = COLS if TRANSPOSED else ROWS
    IN: tl.constexpr = ROWS if TRANSPOSED else COLS
    parts: tl.constexpr = (OUT + TILE_N - 1) // TILE_N
    tiles_n = tl.cdiv(out_width, OUT) * parts
    for tile in range(tl.program_id(0), tl.cdiv(m, TILE_M) * tiles_n, tl.num_programs(0)):
        tile_m, tile_n = tile_of(tile, m, tiles_n, TILE_M, GROUP)
        out_block = tile_n // parts
        if schedule is not None:
            out_block = tl.load(schedule + out_block)
        begin, end = tl.load(offsets + out_block), tl.load(offsets + out_block + 1)
        rows = tile_m * TILE_M + tl.arange(0, TILE_M)
        first_out = tile_n % parts * TILE_N
        acc = tl.zeros((TILE_M, TILE_N), tl.float32)
        if TMA:
            acc = described(
                x, blocks, places, order, begin, end, tile_m * TILE_M, first_out, acc,
                ROWS, IN, TRANSPOSED, TILE_K, PRECISION,
            )  # fmt: skip
        else:
            acc = gathered(
                x, blocks, places, order, begin, end, rows, first_out, acc, m, in_width, stride,
                ROWS, COLS, OUT, IN, TRANSPOSED, TILE_N, TILE_K, PRECISION,
            )  # fmt: skip
        finish_parts(
            acc, y, bias, residual, rows, out_block, first_out, m, out_width, OUT, TILE_M, TILE_N, ACTIVATION
        )  # fmt: skip


@triton.jit
def finish_parts(
    acc,
    y,
    bias,
    residual,
    rows,
    out_block,
    first_out,
    m,
    out_width,
    OUT: tl.constexpr,
    TILE_M: tl.constexpr,
    TILE_N: tl.constexpr,
    ACTIVATION: tl.constexpr,
):
    """Finishes a tile, a wide one in halves: an activation of all of it at once would spill registers."""
    if TILE_N >= 128:
        halves = acc.reshape(TILE_M, 2, TILE_N // 2).permute(0, 2, 1).split()
        for half in tl.static_range(2):
            out = first_out + half * (TILE_N // 2) + tl.arange(0, TILE_N // 2)
            columns = tl.where(out < OUT, out_block * OUT + out, out_width)
            finish(halves[half], y, bias, residual, rows, columns, m, out_width, ACTIVATION)
    else:
        out = first_out + tl.arange(0, TILE_N)
        columns = tl.where(out < OUT, out_block * OUT + out, out_width)
        finish(acc, y, bias, residual, rows, columns, m, out_width, ACTIVATION)


@triton.jit
def described(
    x,
    blocks,
    places,
    order,
    begin,
    end,
    row,
    first_out,
    acc,
    ROWS: tl.constexpr,
    IN: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    TILE_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """acc + the products of a list of blocks, one block after the other, from tensor descriptors."""
    PIECES: tl.constexpr = IN // TILE_K  # of a block
    b, place = place_of(begin, end, order, places)
    for piece in range(begin * PIECES, end * PIECES):
        next_b, next_place = place_of((piece + 1) // PIECES, end, order, places)
        start = piece % PIECES * TILE_K
        xs = x.load([row, place * IN + start])
        if TRANSPOSED:
            ws = blocks.load([b * ROWS + start, first_out])
        else:
            ws = blocks.load([b * ROWS + first_out, start]).trans()
        acc = tl.dot(xs, ws, acc, input_precision=PRECISION)
        b, place = next_b, next_place
    return acc


@triton.jit
def gathered(
    x,
    blocks,
    places,
    order,
    begin,
    end,
    rows,
    first_out,
    acc,
    m,
    in_width,
    stride,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    OUT: tl.constexpr,
    IN: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    TILE_N: tl.constexpr,
    TILE_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """acc + the products of a list of blocks, as many of them side by side as fit TILE_K."""
    SIDE: tl.constexpr = triton.next_power_of_2(IN)
    TOGETHER: tl.constexpr = TILE_K // SIDE if TILE_K > SIDE else 1  # blocks in a step
    PIECES: tl.constexpr = SIDE // TILE_K if TILE_K < SIDE else 1  # steps for a block
    VECTOR: tl.constexpr = 16 if IN % 16 == 0 else 1
    lane = tl.arange(0, TILE_K)
    slot, inside = lane // SIDE, lane % SIDE
    out = first_out + tl.arange(0, TILE_N)
    x_rows = x + rows.to(tl.int64)[:, None] * stride
    steps = tl.cdiv(end - begin, TOGETHER) * PIECES
    b, place = place_of(begin + slot, end, order, places)
    for step in range(0, steps):
        p = begin + step // PIECES * TOGETHER + slot
        next_p = begin + (step + 1) // PIECES * TOGETHER + slot
        next_b, next_place = place_of(next_p, end, order, places)
        within = step % PIECES * TILE_K + inside
        live = (p < end) & (within < IN)
        columns = tl.max_contiguous(tl.multiple_of(place * IN + within, VECTOR), VECTOR)
        x_live = (rows < m)[:, None] & (live & (columns < in_width))[None, :]
        xs = tl.load(x_rows + columns[None, :], mask=x_live, other=0.0)
        block = blocks + b.to(tl.int64) * (ROWS * COLS)
        if TRANSPOSED:
            at = (block + within * COLS)[:, None] + out[None, :]
            ws = tl.load(at, mask=live[:, None] & (out < OUT)[None, :], other=0.0)
        else:
            at = (block + within)[None, :] + out[:, None] * COLS
            ws = tl.load(at, mask=live[None, :] & (out < OUT)[:, None], other=0.0).trans()
        acc = tl.dot(xs, ws, acc, input_precision=PRECISION)
        b, place = next_b, next_place
    return acc


@cache
def processors(device: torch.device) -> int:
    """Streaming multiprocessors of a GPU; on the CPU, as the interpreter has it, two stand for them."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 2


def run(
    x: Tensor, packed: Sequence[Tensor], bias: Tensor | None, residual: Tensor | None, activation: str, entry: RowEntry
) -> Tensor:
    """y: [m, n] for the canonical tensors of a BlockMatrix, with or without the two orders behind them."""
    blocks, offsets, columns = packed[:3]
    schedule = packed[6] if len(packed) > 6 else remembered_order(offsets)
    lists = (offsets, columns, None, schedule)
    config = config_of(entry.config, "forward")
    return _product(x, blocks, lists, bias, residual, activation, entry, config, False)


def run_t(dy: Tensor, packed: Sequence[Tensor], entry: RowEntry) -> Tensor:
    """dy: [m, n] @ w: [m, k], through the transposed index."""
    blocks, _, _, rows, offsets, order = packed[:6]
    schedule = packed[7] if len(packed) > 7 else remembered_order(offsets)
    lists = (offsets, rows, order, schedule)
    return _product(dy, blocks, lists, None, None, "none", entry, config_of(entry.config, "dx"), True)


def _product(
    x: Tensor,
    blocks: Tensor,
    lists: tuple[Tensor, Tensor, Tensor | None, Tensor],
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
    entry: RowEntry,
    named: str,
    transposed: bool,
) -> Tensor:
    pattern = entry.pattern
    assert isinstance(pattern, Block)
    out, deep = (pattern.cols, pattern.rows) if transposed else (pattern.rows, pattern.cols)
    out_width, in_width = (entry.k, entry.n) if transposed else (entry.n, entry.k)
    config = parse(named).within(out, deep)
    if config.tma and (refusal := no_descriptors(pattern, (in_width,), x.element_size(), capability_of(x.device))):
        raise KernelError(f"block_linear can't run the configuration {named!r}: {refusal}; plan with another one")
    m, blocks = x.shape[0], blocks.contiguous()
    y = x.new_empty(m, out_width)
    described = config.tma and len(blocks) > 0  # where no block is live nothing is read
    x = _aligned(x) if described else unit_rows(x)
    tile = config.tile
    tiles = triton.cdiv(m, tile.m) * triton.cdiv(out_width, out) * triton.cdiv(out, tile.n)
    lent = _describe(x, blocks, config, transposed) if described else (x, blocks)
    launch(
        block_linear, min(tiles, processors(x.device) * config.per_processor), y, lent[0], bias, residual, lent[1],
        *lists, m, out_width, in_width, x.stride(0),
        ROWS=pattern.rows, COLS=pattern.cols, TRANSPOSED=transposed, TILE_M=tile.m, TILE_N=tile.n, TILE_K=tile.k,
        GROUP=GROUP_M, TMA=described, PRECISION="tf32" if config.tf32 else "ieee", ACTIVATION=activation,
        num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    return y


def _aligned(x: Tensor) -> Tensor:
    """x as a tensor descriptor takes it: rows of neighbours that begin at multiples of 16 bytes."""
    size = x.element_size()
    fits = x.stride(1) == 1 and x.stride(0) * size % 16 == 0 and x.data_ptr() % 16 == 0 and x.stride(0) > 0
    return x if fits else x.clone(memory_format=torch.contiguous_format)


def _describe(x: Tensor, blocks: Tensor, config: Config, transposed: bool) -> tuple[TensorDescriptor, TensorDescriptor]:
    tile = config.tile
    flat = blocks.view(-1, blocks.shape[2])
    box = [tile.k, tile.n] if transposed else [tile.n, tile.k]
    return TensorDescriptor.from_tensor(x, [tile.m, tile.k]), TensorDescriptor.from_tensor(flat, box)
