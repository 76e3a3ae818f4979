"""The meaning of bitmap_linear in plain torch, on the canonical tensors: y = activation(x @ w.T + bias) + residual."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from ajour.formats.bitmap import BitmapMatrix
from ajour.ops.reference_kernel import reference_kernel
from ajour.terms.pattern import Pattern


def places(packed: Sequence[Tensor]) -> Tensor:
    """Where each value stands among the tiles' positions, 64 a tile: int64 [values]."""
    values, bitmaps, _ = packed
    live = (bitmaps.unsqueeze(-1) >> torch.arange(64, device=bitmaps.device)) & 1
    return torch.nonzero_static(live.flatten(), size=values.shape[0]).squeeze(1)  # static, so that it compiles


def expand(packed: Sequence[Tensor], pattern: Pattern, shape: tuple[int, int]) -> Tensor:
    """w: [n, k] from values and bitmaps, differentiable in the values."""
    tile_rows, tile_cols = packed[1].shape
    tiles = packed[0].new_zeros(tile_rows * tile_cols * 64).index_copy(0, places(packed), packed[0])
    dense = tiles.view(tile_rows, tile_cols, 8, 8).transpose(1, 2).reshape(tile_rows * 8, tile_cols * 8)
    return dense[: shape[0], : shape[1]]


def collect(dw: Tensor, packed: Sequence[Tensor], pattern: Pattern) -> Tensor:
    """The gradient of the values from dw: [n, k], the gradient of the dense weight."""
    tile_rows, tile_cols = packed[1].shape
    padded = pad(dw, (0, -dw.shape[1] % 8, 0, -dw.shape[0] % 8))
    tiles = padded.view(tile_rows, 8, tile_cols, 8).transpose(1, 2).reshape(-1)
    return tiles[places(packed)]


KERNEL = reference_kernel(BitmapMatrix, expand)
