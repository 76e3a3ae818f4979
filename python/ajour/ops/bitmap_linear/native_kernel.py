"""bitmap_linear on the CPU from bitmap rows: `cpu` decodes for few rows of x, `cpu_unpack` expands for many.

Packed order "cpu_rows": values [non-zeros + a tail], bits int64 [n, ceil(k / 64)], starts int64 [n + 1]
(csrc/layout/bitmap_rows.h). At density d it needs d + 1/32 of a dense float32 weight's bytes, d + 1/16 of 16 bits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from ajour._native import native
from ajour.formats.bitmap import BitmapMatrix
from ajour.ops.bitmap_rows import pack_rows, rows_view, unpack_rows
from ajour.ops.dense import dense_kernels
from ajour.terms.kernel import Kernel
from ajour.terms.problem import ACTIVATIONS, Problem
from ajour.terms.row_table import RowEntry

FLOATS = {"float32": 0, "bfloat16": 1, "float16": 2}  # as the compiled part numbers them
ACTIVATION_CODES = {name: code for code, name in enumerate(ACTIVATIONS)}

_bitmap_linear = native.bitmap_linear

FEW_ROWS = 64  # `cpu` decodes the weight anew for every 8 rows of x; `cpu_unpack` writes it out once
SLICE_BYTES = 4 << 20  # of the weight that is dense at one time: it stays in the last-level cache


def why_not_float(problem: Problem) -> str | None:
    """The refusal that every CPU kernel of this op shares."""
    if problem.device != "cpu":
        return f"it runs on the CPU, this layer is on {problem.device}"
    if problem.dtype not in FLOATS:
        return f"it takes {', '.join(FLOATS)}, this layer is {problem.dtype}"
    return None


def _pack(matrix: BitmapMatrix, config: str) -> list[Tensor]:
    return [tensor.to(matrix.device) for tensor in pack_rows(matrix)]


def _run(
    x: Tensor, packed: Sequence[Tensor], bias: Tensor | None, residual: Tensor | None, activation: str, entry: RowEntry
) -> Tensor:
    values, bits, starts = packed
    stride, of_one_row = x.stride()
    if of_one_row != 1:
        x = x.contiguous()
        stride = entry.k
    m, n = x.shape[0], entry.n
    y = x.new_empty(m, n)  # 0.3 µs less than with a tuple, as is shape[0] than len (Zen 5, torch 2.13)
    _bitmap_linear(
        x.data_ptr(),
        stride,
        m,
        n,
        entry.k,
        FLOATS[entry.dtype],
        values.data_ptr(),
        bits.data_ptr(),
        starts.data_ptr(),
        0 if bias is None else bias.data_ptr(),
        0 if residual is None else residual.data_ptr(),
        ACTIVATION_CODES[activation],
        y.data_ptr(),
    )
    return y


_DENSE = {kernel.name: kernel for kernel in dense_kernels(BitmapMatrix)}


def _run_unpacked(
    x: Tensor, packed: Sequence[Tensor], bias: Tensor | None, residual: Tensor | None, activation: str, entry: RowEntry
) -> Tensor:
    if not all(map(math.isfinite, x.aminmax())):  # a zero of the dense weight would make NaN of an Inf
        return _run(x, packed, bias, residual, activation, entry)
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
    return why_not_float(problem)


def _why_not_unpacked(problem: Problem) -> str | None:
    if problem.m < FEW_ROWS:
        return (
            f"it writes the dense weight out for each call, which {problem.m} rows of x don't repay; from {FEW_ROWS} on"
        )
    if reason := why_not_float(problem):
        return reason
    return None if problem.dtype == "float16" else _DENSE["onednn"].why_not(problem)


KERNEL = Kernel(
    name="cpu",
    packing="cpu_rows",
    why_not=_why_not,
    prepack=_pack,
    unpack=unpack_rows,
    run=_run,
)

UNPACK_KERNEL = Kernel(
    name="cpu_unpack",
    packing="cpu_rows",
    why_not=_why_not_unpacked,
    prepack=_pack,
    unpack=unpack_rows,
    run=_run_unpacked,
)
