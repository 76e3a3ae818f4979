"""Addresses as TMA and cuSPARSELt take them."""

from __future__ import annotations

from torch import Tensor

ALIGNED = 16  # bytes; every address must be a multiple of them


def aligned(t: Tensor) -> Tensor:
    """t, or a copy if it begins at no such address."""
    return t.clone() if t.data_ptr() % ALIGNED else t
