"""bitmap_linear on the CPU from bitmap rows: `cpu` decodes for few rows of x, `cpu_unpack` expands for many.

Packed order "cpu_rows": values [non-zeros + a tail], bits int64 [n, ceil(k / 64)], starts int64 [n + 1]
(csrc/layout/bitmap_rows.h). At density d it needs d + 1/32 of a dense float32 weight's bytes, d + 1/16 of 16 bits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ajour._native import native
from ajour.formats.bitmap import BitmapMatrix
from ajour.ops.bitmap_rows import pack_rows, rows_view, unpack_rows
from ajour.ops.compiled import FLOATS, CompiledRun, why_not
from ajour.ops.dense import dense_kernels
from ajour.terms.kernel import Kernel
from ajour.terms.problem import Problem
from ajour.terms.row_table import RowEntry

FEW_ROWS = 64  # `cpu` decodes the weight anew for every 8 rows of x; `cpu_unpack` writes it out once
SLICE_BYTES = 4 << 20  # of the weight that is dense at one time: it stays in the last-level cache


def _pack(matrix: BitmapMatrix, config: str) -> list[Tensor]:
    return [tensor.to(matrix.device) for tensor in pack_rows(matrix)]


def _compiled(entry: RowEntry) -> Any:
    return native.bitmap_linear(entry.n, entry.k, FLOATS[entry.dtype])


_DENSE = {kernel.name: kernel for kernel in dense_kernels(BitmapMatrix)}


def _run_unpacked(
    x: Tensor, packed: Sequence[Tensor], bias: Tensor | None, residual: Tensor | None, activation: str, entry: RowEntry
) -> Tensor:
    if not all(map(math.isfinite, x.aminmax())):  # a zero of the dense weight would make NaN of an Inf
        return KERNEL.run(x, packed, bias, residual, activation, entry)  # type: ignore[no-any-return]
    dense = _DENSE["aten" if entry.dtype == "float16" else "onednn"]
    n, k = entry.n, entry.k
    rows = rows_view(packed, n, k)
    step = max(64, SLICE_BYTES // (k * x.element_size()) // 64 * 64)
    w = x.new_empty((min(n, step), k))
    y = x.new_empty((x.shape[0], n)) if n > step else None
    for first in range(0, n, step):
        last = min(n, first + step)
        native.bitmap_expand(rows, first, last, w.data_ptr())
        part: Tensor = dense.run(
            x, [w[: last - first]], None if bias is None else bias[first:last],
            None if residual is None else residual[:, first:last], activation, entry,
        )  # fmt: skip
        if y is None:
            return part
        y[:, first:last] = part
    assert y is not None
    return y


def _why_not(problem: Problem) -> str | None:
    if problem.m > FEW_ROWS:
        return f"it decodes the weight anew for every 8 rows of x, and {problem.m} are more than {FEW_ROWS}"
    return why_not(problem)


def _why_not_unpacked(problem: Problem) -> str | None:
    if problem.m < FEW_ROWS:
        return (
            f"it writes the dense weight out for each call, which {problem.m} rows of x don't repay; from {FEW_ROWS} on"
        )
    if reason := why_not(problem):
        return reason
    return None if problem.dtype == "float16" else _DENSE["onednn"].why_not(problem)


KERNEL = Kernel(
    name="cpu", packing="cpu_rows", prepack=_pack, unpack=unpack_rows, why_not=_why_not, run=CompiledRun(3, _compiled)
)

UNPACK_KERNEL = Kernel(
    name="cpu_unpack",
    packing="cpu_rows",
    why_not=_why_not_unpacked,
    prepack=_pack,
    unpack=unpack_rows,
    run=_run_unpacked,
)
