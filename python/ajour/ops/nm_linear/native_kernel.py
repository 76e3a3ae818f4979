"""nm_linear on the CPU: panels of 16 rows, in C++ for every instruction set, or expanded for a dense product."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ajour import huge_pages
from ajour._native import native
from ajour.formats.nm import NMMatrix
from ajour.ops.compiled import FLOATS, CompiledRun, why_not
from ajour.ops.dense import dense_kernels
from ajour.ops.nm_panels import layout_of, pack_panels, panels_of, unpack_panels
from ajour.terms.kernel import Kernel
from ajour.terms.pattern import NM, Pattern
from ajour.terms.problem import Problem
from ajour.terms.row_table import RowEntry

_ONEDNN, _ATEN = dense_kernels(NMMatrix)
_FEWEST_ROWS_TO_EXPAND = 64
_LARGE = 8 << 20  # bytes; smaller blocks come back from the allocator with their pages


def _why_not_expand(problem: Problem) -> str | None:
    if problem.m < _FEWEST_ROWS_TO_EXPAND:
        return f"expanding the weight can pay from {_FEWEST_ROWS_TO_EXPAND} rows on, not for fewer"
    return why_not(problem)


def _prepack(matrix: NMMatrix, config: str) -> list[Tensor]:
    return pack_panels(matrix)


def _unpack(packed: Sequence[Tensor], pattern: Pattern, shape: tuple[int, int]) -> NMMatrix:
    assert isinstance(pattern, NM)
    return unpack_panels(packed, pattern, shape)


def _compiled(entry: RowEntry) -> Any:
    assert isinstance(entry.pattern, NM)
    layout = panels_of(entry.n, entry.k, entry.pattern.keep, entry.pattern.group, entry.dtype)
    return native.nm_linear(layout, FLOATS[entry.dtype])


def _expanded(panels: Tensor, codes: Tensor, entry: RowEntry) -> Tensor:
    """The dense weight, on huge pages where it is large: 10 ms against 35 ms in common ones for 64 MiB (Zen 5)."""
    count = entry.n * entry.k
    large = count * panels.element_size() >= _LARGE
    w = huge_pages.empty(count, panels.dtype) if large else panels.new_empty(count)
    assert isinstance(entry.pattern, NM)
    layout = layout_of(entry.pattern, (entry.n, entry.k), panels.dtype)
    native.nm_expand(layout, panels.data_ptr(), codes.data_ptr(), w.data_ptr())
    return w.view(entry.n, entry.k)


KERNEL = Kernel(
    name="cpu", packing="cpu_panels", prepack=_prepack, unpack=_unpack, why_not=why_not, run=CompiledRun(2, _compiled)
)


def _run_expanded(
    x: Tensor, packed: Sequence[Tensor], bias: Tensor | None, residual: Tensor | None, activation: str, entry: RowEntry
) -> Tensor:
    """A dense product with the expanded weight; rows of x with Inf or NaN, which its zeros would spread, use `cpu`."""
    panels, codes = packed
    dense = _ONEDNN if x.dtype != torch.float16 and torch.backends.mkldnn.is_available() else _ATEN
    y: Tensor = dense.run(x, [_expanded(panels, codes, entry)], bias, residual, activation, entry)
    if not all(map(math.isfinite, x.aminmax())):
        rows = (~torch.isfinite(x)).any(1).nonzero().flatten()
        y[rows] = KERNEL.run(x[rows], packed, bias, None if residual is None else residual[rows], activation, entry)
    return y


EXPANDED = Kernel(
    name="cpu_unpack",
    packing="cpu_panels",
    why_not=_why_not_expand,
    prepack=_prepack,
    unpack=_unpack,
    run=_run_expanded,
)
