"""bitmap_linear on the CPU from chunked rows: tokens in lanes, chunks of k in the L1 cache, rows sorted by length.

Packed order "cpu_chunks": values, columns int16, visits int32, cells and panels int64 (csrc/layout/chunked_rows.h). It
needs 6 bytes for each float32 non-zero and 4 for each 16-bit one, less than bitmap rows where 15 of 16 are zeros.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ajour._native import native
from ajour.formats.bitmap import BitmapMatrix
from ajour.memory import on_host
from ajour.ops.bitmap_linear.native_kernel import (
    ACTIVATION_CODES,
    FLOATS,
    lend,
    pack_rows,
    rows_view,
    unpack_rows,
    why_not_float,
)
from ajour.terms.kernel import Kernel
from ajour.terms.pattern import Pattern
from ajour.terms.problem import Problem
from ajour.terms.row_table import RowEntry

WIDE, NARROW = "256", "128"  # columns of a chunk: 128 leave room for 64 tokens in L1, better below 85 % zeros


def _configs(problem: Problem) -> tuple[str, ...]:
    return (WIDE, NARROW) if problem.dtype == "float32" and problem.m > 32 and problem.k > 128 else (WIDE,)


def _view(packed: Sequence[Tensor], n: int, k: int) -> Any:
    values, columns, visits, cells, panels = packed
    return native.ChunkedRows(
        values.data_ptr(), columns.data_ptr(), visits.data_ptr(), cells.data_ptr(), panels.data_ptr(), n, k,
        panels.shape[0] - 1, (cells.shape[0] - 1) // max(1, panels.shape[0] - 1), values.element_size(),
    )  # fmt: skip


def _pack(matrix: BitmapMatrix, config: str) -> list[Tensor]:
    n, k = matrix.shape
    tensors = pack_rows(matrix)
    rows = rows_view(tensors, n, k)
    chunks = native.chunks_of(k, int(config or WIDE))
    panels = torch.empty(-(-n // native.PANEL_ALIGN) + 1, 2, dtype=torch.int64)
    panels = panels[: native.cut_panels(rows, chunks, panels.data_ptr()) + 1].clone()
    cells = torch.empty(chunks * (panels.shape[0] - 1) + 1, 2, dtype=torch.int64)
    values = torch.empty_like(tensors[0])
    columns = torch.empty(values.shape, dtype=torch.int16)
    visits = torch.empty(0, dtype=torch.int32)
    packed = [values, columns, visits, cells, panels]
    packed[2] = torch.empty(native.cut_cells(rows, _view(packed, n, k)), dtype=torch.int32)
    native.pack_chunked_rows(rows, _view(packed, n, k))
    return [tensor.to(matrix.device) for tensor in packed]


def _unpack(packed: Sequence[Tensor], pattern: Pattern, shape: tuple[int, int]) -> BitmapMatrix:
    n, k = shape
    device, packed = packed[0].device, [on_host(tensor) for tensor in packed]
    rows = [
        torch.empty_like(packed[0]),
        torch.empty(n, -(-k // 64), dtype=torch.int64),
        torch.empty(n + 1, dtype=torch.int64),
    ]
    native.unpack_chunked_rows(_view(packed, n, k), rows_view(rows, n, k))
    return unpack_rows([tensor.to(device) for tensor in rows], pattern, shape)


def _run(
    x: Tensor, packed: Sequence[Tensor], bias: Tensor | None, residual: Tensor | None, activation: str, entry: RowEntry
) -> Tensor:
    x, y, bias, residual, extras = lend(x, bias, residual, entry.n)
    native.chunked_linear(
        x.data_ptr(), x.stride(0), x.shape[0], FLOATS[entry.dtype], _view(packed, entry.n, entry.k), *extras,
        ACTIVATION_CODES[activation], y.data_ptr(),
    )  # fmt: skip
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
