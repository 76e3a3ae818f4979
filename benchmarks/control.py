"""The packed dense control: what packing alone brings, so that a decode figure can tell sparsity's part of it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from ajour import huge_pages
from ajour._native import native
from ajour.planning.timing import Side

PANEL = 16  # rows of a panel
MOST_ROWS = 8  # beyond, weights are read from the cache more often than from memory, and packing tells little


def panels(weights: Sequence[Tensor]) -> list[Tensor]:
    """The weights [n, k] packed, or nothing where the control does not apply.

    [n / 16, k, 16] for float32, [n / 16, k / 2, 16, 2] for bfloat16, as csrc/cpu/dense_panels.h reads them.
    """
    first = weights[0]
    n, k = first.shape
    if first.device.type != "cpu" or first.dtype not in (torch.float32, torch.bfloat16) or n % PANEL or k % 2:
        return []
    if first.dtype == torch.float32:
        return [_held(w.view(n // PANEL, PANEL, k).transpose(1, 2)) for w in weights]
    return [_held(w.view(n // PANEL, PANEL, k // 2, 2).permute(0, 2, 1, 3)) for w in weights]


def _held(w: Tensor) -> Tensor:
    """A contiguous copy where the sparse kernels' packed weights lie, so that pages make no difference."""
    return huge_pages.empty(w.numel(), w.dtype).view(w.shape).copy_(w)


def control_side(x: Tensor, packed: Sequence[Tensor]) -> list[Side]:
    """The control as a side for a few rows x: [m, k], else nothing."""
    if not packed or x.shape[0] > MOST_ROWS:
        return []
    return [Side("packed dense", [partial(multiply, x, each) for each in packed])]


def multiply(x: Tensor, packed: Tensor) -> Tensor:
    """x @ w.T: [m, n]."""
    m, k = x.shape
    y = x.new_empty(m, packed.shape[0] * PANEL)
    native._dense_panels(packed.data_ptr(), x.data_ptr(), y.data_ptr(), m, y.shape[1], k, x.dtype == torch.bfloat16)
    return y
