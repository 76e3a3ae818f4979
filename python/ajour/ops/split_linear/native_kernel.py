"""split_linear on the CPU: the 2:4 kernel and the one for chunked rows, whose sums meet before anything is rounded.

Packed order "cpu_split": panels and codes of the 2:4 part (csrc/layout/nm_panels.h); values, columns int16 and an index
int64 of the rest (csrc/layout/chunked_rows.h).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ajour._native import native
from ajour.formats.split import PAIRS, SplitMatrix
from ajour.ops.bitmap_rows import pack_chunks, unpack_chunks
from ajour.ops.nm_panels import pack_panels, panels_of, unpack_panels
from ajour.terms.kernel import Kernel
from ajour.terms.pattern import Pattern
from ajour.terms.problem import ACTIVATIONS, Problem
from ajour.terms.row_table import RowEntry

_DTYPES = {"float32": 0, "bfloat16": 1, "float16": 2}
_ACTIVATIONS = {name: code for code, name in enumerate(ACTIVATIONS)}
_CHUNK_COLUMNS = 256
_split_linear = native.split_linear


def _why_not(problem: Problem) -> str | None:
    if problem.device != "cpu":
        return f"it runs on the CPU, this layer is on {problem.device}"
    if problem.dtype not in _DTYPES:
        return f"it takes {', '.join(_DTYPES)}, this layer is {problem.dtype}"
    return None


def _prepack(matrix: SplitMatrix, config: str) -> list[Tensor]:
    return [*pack_panels(matrix.pairs()), *pack_chunks(matrix.rest(), _CHUNK_COLUMNS)]


def _unpack(packed: Sequence[Tensor], pattern: Pattern, shape: tuple[int, int]) -> SplitMatrix:
    return SplitMatrix.of(unpack_panels(packed[:2], PAIRS, shape), unpack_chunks(packed[2:], pattern, shape))


def _run(
    x: Tensor, packed: Sequence[Tensor], bias: Tensor | None, residual: Tensor | None, activation: str, entry: RowEntry
) -> Tensor:
    panels, codes, values, columns, index = packed
    stride, of_one_column = x.stride()
    if of_one_column != 1:
        x = x.contiguous()
        stride = entry.k
    m, n, dtype = x.shape[0], entry.n, entry.dtype
    y = x.new_empty(m, n)
    sums = y if dtype == "float32" else x.new_empty(m, n, dtype=torch.float32)  # read before y is written there
    _split_linear(
        panels_of(n, entry.k, 2, 4, dtype),
        panels.data_ptr(),
        codes.data_ptr(),
        values.data_ptr(),
        columns.data_ptr(),
        index.data_ptr(),
        x.data_ptr(),
        m,
        stride,
        0 if bias is None else bias.data_ptr(),
        0 if residual is None else residual.data_ptr(),
        sums.data_ptr(),
        y.data_ptr(),
        _DTYPES[dtype],
        _ACTIVATIONS[activation],
    )
    return y


KERNEL = Kernel(name="cpu", packing="cpu_split", why_not=_why_not, prepack=_prepack, unpack=_unpack, run=_run)
