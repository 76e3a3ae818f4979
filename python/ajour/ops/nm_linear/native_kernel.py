"""nm_linear on the CPU: panels of 16 rows, in C++ for every instruction set, or expanded for a dense product."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ajour import huge_pages
from ajour._native import native
from ajour.formats.nm import NMMatrix
from ajour.memory import on_host
from ajour.ops.dense import dense_kernels
from ajour.terms.kernel import Kernel
from ajour.terms.pattern import NM, Pattern
from ajour.terms.problem import ACTIVATIONS, Problem
from ajour.terms.row_table import RowEntry

_DTYPES = {"float32": 0, "bfloat16": 1, "float16": 2}
_ACTIVATIONS = {name: code for code, name in enumerate(ACTIVATIONS)}
_ONEDNN, _ATEN = dense_kernels(NMMatrix)
_FEWEST_ROWS_TO_EXPAND = 64
_LARGE = 8 << 20  # bytes; smaller blocks come back from the allocator with their pages
_nm_linear = native.nm_linear


@cache
def _layout(n: int, k: int, keep: int, group: int, dtype: str) -> Any:
    return native.NMPanels(n, k, keep, group, 4 if dtype == "float32" else 2, dtype == "bfloat16")


def _layout_of(pattern: Pattern, shape: tuple[int, int], dtype: torch.dtype) -> Any:
    assert isinstance(pattern, NM)
    return _layout(*shape, pattern.keep, pattern.group, str(dtype).removeprefix("torch."))


def _why_not(problem: Problem) -> str | None:
    if problem.device != "cpu":
        return f"it runs on the CPU, this layer is on {problem.device}"
    if problem.dtype not in _DTYPES:
        return f"it takes {', '.join(_DTYPES)}, this layer is {problem.dtype}"
    return None


def _why_not_expand(problem: Problem) -> str | None:
    if problem.m < _FEWEST_ROWS_TO_EXPAND:
        return f"expanding the weight can pay from {_FEWEST_ROWS_TO_EXPAND} rows on, not for fewer"
    return _why_not(problem)


def _prepack(matrix: NMMatrix, config: str) -> list[Tensor]:
    layout = _layout_of(matrix.pattern, matrix.shape, matrix.dtype)
    values, positions = (on_host(t) for t in matrix.tensors().values())
    panels = huge_pages.empty(layout.values, matrix.dtype)
    codes = huge_pages.empty(layout.code_bytes, torch.uint8)
    native.pack_nm_panels(layout, values.data_ptr(), positions.data_ptr(), panels.data_ptr(), codes.data_ptr())
    return [panels.to(matrix.device), codes.to(matrix.device)]


def _unpack(packed: Sequence[Tensor], pattern: Pattern, shape: tuple[int, int]) -> NMMatrix:
    assert isinstance(pattern, NM)
    panels, codes = (on_host(t) for t in packed)
    canonical, (n, k) = native.NMLayout(pattern.keep, pattern.group), shape
    values = torch.empty(n, canonical.kept(k), dtype=panels.dtype)
    positions = torch.empty(n, canonical.position_bytes(k), dtype=torch.uint8)
    layout = _layout_of(pattern, shape, panels.dtype)
    native.unpack_nm_panels(layout, panels.data_ptr(), codes.data_ptr(), values.data_ptr(), positions.data_ptr())
    device = packed[0].device
    return NMMatrix({"values": values.to(device), "positions": positions.to(device)}, pattern, shape)


def _run(
    x: Tensor, packed: Sequence[Tensor], bias: Tensor | None, residual: Tensor | None, activation: str, entry: RowEntry
) -> Tensor:
    panels, codes = packed
    stride, of_one_column = x.stride()
    if of_one_column != 1:
        x = x.contiguous()
        stride = entry.k
    m, n, dtype, pattern = x.shape[0], entry.n, entry.dtype, entry.pattern
    y = x.new_empty(m, n)
    _nm_linear(
        _layout(n, entry.k, pattern.keep, pattern.group, dtype),  # type: ignore[union-attr]
        panels.data_ptr(),
        codes.data_ptr(),
        x.data_ptr(),
        m,
        stride,
        0 if bias is None else bias.data_ptr(),
        0 if residual is None else residual.data_ptr(),
        y.data_ptr(),
        _DTYPES[dtype],
        _ACTIVATIONS[activation],
    )
    return y


def _expanded(panels: Tensor, codes: Tensor, entry: RowEntry) -> Tensor:
    """The dense weight, on huge pages where it is large: 10 ms against 35 ms in common ones for 64 MiB (Zen 5)."""
    count = entry.n * entry.k
    large = count * panels.element_size() >= _LARGE
    w = huge_pages.empty(count, panels.dtype) if large else panels.new_empty(count)
    layout = _layout_of(entry.pattern, (entry.n, entry.k), panels.dtype)
    native.nm_expand(layout, panels.data_ptr(), codes.data_ptr(), w.data_ptr())
    return w.view(entry.n, entry.k)


def _run_expanded(
    x: Tensor, packed: Sequence[Tensor], bias: Tensor | None, residual: Tensor | None, activation: str, entry: RowEntry
) -> Tensor:
    """A dense product with the expanded weight; rows of x with Inf or NaN, which its zeros would spread, use `_run`."""
    panels, codes = packed
    dense = _ONEDNN if x.dtype != torch.float16 and torch.backends.mkldnn.is_available() else _ATEN
    y: Tensor = dense.run(x, [_expanded(panels, codes, entry)], bias, residual, activation, entry)
    if not all(map(math.isfinite, x.aminmax())):
        rows = (~torch.isfinite(x)).any(1).nonzero().flatten()
        y[rows] = _run(x[rows], packed, bias, None if residual is None else residual[rows], activation, entry)
    return y


KERNEL = Kernel(name="cpu", packing="cpu_panels", why_not=_why_not, prepack=_prepack, unpack=_unpack, run=_run)

EXPANDED = Kernel(
    name="cpu_unpack",
    packing="cpu_panels",
    why_not=_why_not_expand,
    prepack=_prepack,
    unpack=_unpack,
    run=_run_expanded,
)
