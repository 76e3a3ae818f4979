"""scaled_nm_linear in Triton: rows of x rounded by one kernel, e4m3 values decoded to x's dtype by the next.

The decoded tile meets x on the tensor cores as 16-bit floats, in which both are exact, so it runs on cards without
8-bit products; what it saves are bytes: 5 bits are read for each weight of the dense layer.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton.language as tl
from torch import Tensor

import triton
from ajour.formats.e4m3 import EXPONENTS
from ajour.ops.triton_door import parse_tile, tiles
from ajour.ops.triton_tile import finish, launch, unit_rows
from ajour.terms.problem import Problem
from ajour.terms.row_table import RowEntry

_CHUNK = 1024  # columns that are rounded at a time


@triton.jit(do_not_specialize=["m"])
def round_rows(x, rounded, k, stride, LOW: tl.constexpr, HIGH: tl.constexpr, CHUNK: tl.constexpr):
    """rounded: [m, k] from x: [m, k], rows `stride` apart, one a program: e4m3 under a power of two, as formats/e4m3.py
    says, in x's own dtype; all NaN where the row holds Inf or NaN.
    """
    row = tl.program_id(0).to(tl.int64)
    within = tl.arange(0, CHUNK)
    largest = tl.zeros((CHUNK,), tl.float32)
    broken = tl.zeros((CHUNK,), tl.int32)
    for first in range(0, k, CHUNK):
        v = tl.load(x + row * stride + first + within, mask=first + within < k, other=0.0).to(tl.float32)
        broken |= (tl.abs(v) < float("inf")).to(tl.int32) ^ 1
        largest = tl.maximum(largest, tl.abs(v))
    # the smallest power of two that is at least largest / 464, and 464 = 1.8125 * 2**8: by bits, as / is not exact here
    bits = tl.max(largest, 0).to(tl.int32, bitcast=True)
    exponent = (bits >> 23) - 135 + ((bits & 0x7FFFFF) > 0x680000).to(tl.int32)
    exponent = tl.where(bits == 0, 0, tl.minimum(tl.maximum(exponent, LOW), HIGH))
    scale = ((127 + exponent) << 23).to(tl.float32, bitcast=True)
    inverse = ((127 - exponent) << 23).to(tl.float32, bitcast=True)
    inverse = tl.where(tl.max(broken, 0) > 0, float("nan"), inverse)
    for first in range(0, k, CHUNK):
        live = first + within < k
        v = tl.load(x + row * stride + first + within, mask=live, other=0.0).to(tl.float32) * inverse
        v = tl.where(v > 448.0, 448.0, tl.where(v < -448.0, -448.0, v))
        # ulp: 2**-3 of the value's power of two, at least 2**-9; adding and taking away 1.5 * 2**23 of them rounds
        power = (v.to(tl.int32, bitcast=True) & 0x7F800000).to(tl.float32, bitcast=True)
        magic = tl.maximum(power, 0.015625) * (0.125 * 12582912.0)
        v = (v + magic) - magic
        tl.store(rounded + row * k + first + within, (v * scale).to(rounded.dtype.element_ty), mask=live)


@triton.jit
def decoded(code, DTYPE: tl.constexpr):
    """An e4m3 code, as int32, in DTYPE: its bits in those of a float32 whose exponent is 120 too small."""
    wide = ((code & 0x7F) << 20) | ((code & 0x80) << 24)
    return (wide.to(tl.float32, bitcast=True) * 1.329227995784916e36).to(DTYPE)


@triton.jit(do_not_specialize=["m"])
def scaled_nm_linear(
    x,
    y,
    bias,
    residual,
    values,
    positions,
    scales,
    m,
    n,
    k,
    groups,
    row_bytes,
    TILE_M: tl.constexpr,
    TILE_N: tl.constexpr,
    TILE_G: tl.constexpr,
    ACTIVATION: tl.constexpr,
):
    """y: [m, n] from x: [m, k], rounded; values: uint8 [n, 2 * groups], positions: [n, row_bytes], scales: [n]."""
    tiles_n = tl.cdiv(n, TILE_N)
    rows = tl.program_id(0) // tiles_n * TILE_M + tl.arange(0, TILE_M)
    columns = tl.program_id(0) % tiles_n * TILE_N + tl.arange(0, TILE_N)
    x_rows = x + rows.to(tl.int64)[:, None] * k
    value_rows = values + columns.to(tl.int64)[:, None] * (groups * 2)
    position_rows = positions + columns.to(tl.int64)[:, None] * row_bytes
    wide = tl.arange(0, TILE_G * 4)
    place = tl.arange(0, 4)[None, None, :]
    acc = tl.zeros((TILE_M, TILE_N), tl.float32)
    for first in range(0, groups, TILE_G):
        group = (first + tl.arange(0, TILE_G))[None, :]
        live = (columns < n)[:, None] & (group < groups)
        code = tl.load(position_rows + group // 2, mask=live, other=0).to(tl.int32) >> (group % 2 * 4)
        low = tl.load(value_rows + group * 2, mask=live, other=0).to(tl.int32)
        high = tl.load(value_rows + group * 2 + 1, mask=live, other=0).to(tl.int32)
        w = tl.where(place == (code & 3)[:, :, None], low[:, :, None], 0)
        w = tl.where(place == ((code >> 2) & 3)[:, :, None], high[:, :, None], w)
        cols = first * 4 + wide
        xs = tl.load(x_rows + cols[None, :], mask=(rows < m)[:, None] & (cols < k)[None, :], other=0.0)
        dense = decoded(w.reshape(TILE_N, TILE_G * 4), x.dtype.element_ty)
        acc = tl.dot(xs, dense.trans(), acc, input_precision="ieee")
    acc *= tl.load(scales + columns, mask=columns < n, other=0.0).to(tl.float32)[None, :]
    finish(acc, y, bias, residual, rows, columns, m, n, ACTIVATION)


def why_not(problem: Problem) -> str | None:
    """Takes what the format holds."""
    return None


def configs(problem: Problem) -> tuple[str, ...]:
    """Tiles of whole bytes of positions."""
    return tiles(problem, (64, 32), (64, 128))


def run(
    x: Tensor, packed: Sequence[Tensor], bias: Tensor | None, residual: Tensor | None, activation: str, entry: RowEntry
) -> Tensor:
    """y: [m, n] for the canonical tensors of a ScaledNMMatrix."""
    tile, x = parse_tile(entry.config), unit_rows(x)
    values, positions, scales = packed
    m, low_high = x.shape[0], EXPONENTS[x.dtype]
    rounded, y = x.new_empty(m, entry.k), x.new_empty(m, entry.n)
    launch(round_rows, m, x, rounded, entry.k, x.stride(0), LOW=low_high[0], HIGH=low_high[1], CHUNK=_CHUNK)
    launch(
        scaled_nm_linear, triton.cdiv(m, tile.m) * triton.cdiv(entry.n, tile.n), rounded, y, bias, residual,
        values.view(torch.uint8), positions, scales, m, entry.n, entry.k, triton.cdiv(entry.k, 4), positions.shape[1],
        TILE_M=tile.m, TILE_N=tile.n, TILE_G=tile.k // 4, ACTIVATION=activation, num_warps=tile.warps,
        num_stages=tile.stages,
    )  # fmt: skip
    return y
