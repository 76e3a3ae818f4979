"""bitmap_linear on the CPU from chunked rows: tokens in lanes, chunks of k in the L1 cache, rows sorted by length.

Packed order "cpu_chunks": values, columns int16 and an index int64 (csrc/layout/chunked_rows.h). It needs 6 bytes for
each float32 non-zero and 4 for each 16-bit one, less than bitmap rows where 15 of 16 weights are zeros.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ajour import huge_pages
from ajour._native import native
from ajour.formats.bitmap import BitmapMatrix
from ajour.memory import on_host
from ajour.ops.bitmap_linear.native_kernel import (
    ACTIVATION_CODES,
    FLOATS,
    pack_rows,
    rows_view,
    unpack_rows,
    why_not_float,
)
from ajour.terms.kernel import Kernel
from ajour.terms.pattern import Pattern
from ajour.terms.problem import Problem
from ajour.terms.row_table import RowEntry

_chunked_linear = native.chunked_linear
WIDE, NARROW = "256", "128"  # columns of a chunk: 128 leave room for 64 tokens in L1, better below 85 % zeros


def _configs(problem: Problem) -> tuple[str, ...]:
    return (WIDE, NARROW) if problem.dtype == "float32" and problem.m > 32 and problem.k > 128 else (WIDE,)


def _pack(matrix: BitmapMatrix, config: str) -> list[Tensor]:
    n, k = matrix.shape
    tensors = pack_rows(matrix)
    rows, chunks = rows_view(tensors, n, k), native.chunks_of(k, int(config or WIDE))
    values = huge_pages.empty(tensors[0].numel(), tensors[0].dtype)
    columns = huge_pages.empty(values.numel(), torch.int16)
    index = torch.empty(native.chunk_index_size(rows, chunks), dtype=torch.int64)
    native.pack_chunked_rows(rows, chunks, values.data_ptr(), columns.data_ptr(), index.data_ptr())
    return [tensor.to(matrix.device) for tensor in (values, columns, index)]


def _unpack(packed: Sequence[Tensor], pattern: Pattern, shape: tuple[int, int]) -> BitmapMatrix:
    n, k = shape
    values, columns, index = (on_host(tensor) for tensor in packed)
    rows = [
        torch.empty_like(values),
        torch.empty(n, -(-k // 64), dtype=torch.int64),
        torch.empty(n + 1, dtype=torch.int64),
    ]
    native.unpack_chunked_rows(values.data_ptr(), columns.data_ptr(), index.data_ptr(), rows_view(rows, n, k))
    return unpack_rows([tensor.to(packed[0].device) for tensor in rows], pattern, shape)


def _run(
    x: Tensor, packed: Sequence[Tensor], bias: Tensor | None, residual: Tensor | None, activation: str, entry: RowEntry
) -> Tensor:
    values, columns, index = packed
    stride, of_one_row = x.stride()
    if of_one_row != 1:
        x = x.contiguous()
        stride = entry.k
    m, n = x.shape[0], entry.n
    y = x.new_empty(m, n)  # 0.3 µs less than with a tuple, as is shape[0] than len (Zen 5, torch 2.13)
    _chunked_linear(
        x.data_ptr(),
        stride,
        m,
        n,
        entry.k,
        FLOATS[entry.dtype],
        values.data_ptr(),
        columns.data_ptr(),
        index.data_ptr(),
        0 if bias is None else bias.data_ptr(),
        0 if residual is None else residual.data_ptr(),
        ACTIVATION_CODES[activation],
        y.data_ptr(),
    )
    return y


KERNEL = Kernel(
    name="cpu_chunked",
    packing="cpu_chunks",
    why_not=why_not_float,
    prepack=_pack,
    unpack=_unpack,
    run=_run,
    configs=_configs,
)
