"""Packed order "nm_slabs", which the CUDA kernels read: one tensor in the order of the tensor cores' fragments.

2:4 takes 9 bits for each weight of the dense layer (csrc/layout/nm_slabs.h).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ajour._native import native
from ajour.formats.nm import NMMatrix
from ajour.memory import on_host
from ajour.terms.pattern import NM, Pattern

PACKING = "nm_slabs"


@cache
def layout_of(pattern: Pattern, n: int, k: int) -> Any:
    """The NMSlabs of a weight."""
    assert isinstance(pattern, NM)
    return native.NMSlabs(n, k, pattern.keep, pattern.group)


def prepack(matrix: NMMatrix, config: str) -> list[Tensor]:
    """The slabs, as a tensor of the values' dtype; the same for every config."""
    layout = layout_of(matrix.pattern, *matrix.shape)
    values, positions = (on_host(t) for t in matrix.tensors().values())
    slabs = torch.empty(layout.bytes, dtype=torch.uint8)
    native.pack_nm_slabs(layout, values.data_ptr(), positions.data_ptr(), slabs.data_ptr())
    return [slabs.view(values.dtype).to(matrix.device)]


def unpack(packed: Sequence[Tensor], pattern: Pattern, shape: tuple[int, int]) -> NMMatrix:
    """The bit-exact inverse."""
    assert isinstance(pattern, NM)
    slabs, (n, k) = on_host(packed[0]), shape
    canonical = native.NMLayout(pattern.keep, pattern.group)
    values = torch.empty(n, canonical.kept(k), dtype=slabs.dtype)
    positions = torch.empty(n, canonical.position_bytes(k), dtype=torch.uint8)
    native.unpack_nm_slabs(layout_of(pattern, n, k), slabs.data_ptr(), values.data_ptr(), positions.data_ptr())
    device = packed[0].device
    return NMMatrix({"values": values.to(device), "positions": positions.to(device)}, pattern, shape)
