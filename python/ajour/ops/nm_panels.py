"""N:M panels, the order that CPU kernels read (csrc/layout/nm_panels.h): from an NMMatrix, and bit for bit back."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ajour import huge_pages
from ajour._native import native
from ajour.formats.nm import NMMatrix
from ajour.memory import on_host
from ajour.terms.pattern import NM


@cache
def panels_of(n: int, k: int, keep: int, group: int, dtype: str) -> Any:
    """The NMPanels of a weight; dtype is float32, bfloat16 or float16."""
    return native.NMPanels(n, k, keep, group, 4 if dtype == "float32" else 2, dtype == "bfloat16")


def layout_of(pattern: NM, shape: tuple[int, int], dtype: torch.dtype) -> Any:
    """The same for what a matrix knows of itself."""
    return panels_of(*shape, pattern.keep, pattern.group, str(dtype).removeprefix("torch."))


def pack_panels(matrix: NMMatrix) -> list[Tensor]:
    """[panels, codes], on the matrix' device."""
    assert isinstance(matrix.pattern, NM)
    layout = layout_of(matrix.pattern, matrix.shape, matrix.dtype)
    values, positions = (on_host(t) for t in matrix.tensors().values())
    panels = huge_pages.empty(layout.values, matrix.dtype)
    codes = huge_pages.empty(layout.code_bytes, torch.uint8)
    native.pack_nm_panels(layout, values.data_ptr(), positions.data_ptr(), panels.data_ptr(), codes.data_ptr())
    return [panels.to(matrix.device), codes.to(matrix.device)]


def unpack_panels(packed: Sequence[Tensor], pattern: NM, shape: tuple[int, int]) -> NMMatrix:
    """The inverse of `pack_panels`."""
    panels, codes = (on_host(t) for t in packed)
    canonical, (n, k) = native.NMLayout(pattern.keep, pattern.group), shape
    values = torch.empty(n, canonical.kept(k), dtype=panels.dtype)
    positions = torch.empty(n, canonical.position_bytes(k), dtype=torch.uint8)
    layout = layout_of(pattern, shape, panels.dtype)
    native.unpack_nm_panels(layout, panels.data_ptr(), codes.data_ptr(), values.data_ptr(), positions.data_ptr())
    device = packed[0].device
    return NMMatrix({"values": values.to(device), "positions": positions.to(device)}, pattern, shape)
