"""The meaning of bitmap_linear in plain torch, on the canonical tensors: y = activation(x @ w.T + bias) + residual."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ajour.formats.bitmap import BitmapMatrix
from ajour.ops.dense import apply_activation
from ajour.terms.kernel import Kernel
from ajour.terms.pattern import Pattern
from ajour.terms.row_table import RowEntry


def expand(packed: Sequence[Tensor], pattern: Pattern, shape: tuple[int, int]) -> Tensor:
    """w: [n, k] from values and bitmaps, differentiable in the values."""
    values, bitmaps, _ = packed
    tile_rows, tile_cols = bitmaps.shape
    live = (bitmaps.unsqueeze(-1) >> torch.arange(64, device=bitmaps.device)) & 1 != 0
    tiles = values.new_zeros(live.shape).masked_scatter(live, values)
    dense = tiles.view(tile_rows, tile_cols, 8, 8).transpose(1, 2).reshape(tile_rows * 8, tile_cols * 8)
    return dense[: shape[0], : shape[1]]


def _run(
    x: Tensor, packed: Sequence[Tensor], bias: Tensor | None, residual: Tensor | None, activation: str, entry: RowEntry
) -> Tensor:
    w = expand(packed, entry.pattern, (entry.n, entry.k))
    y = apply_activation(torch.nn.functional.linear(x, w, bias), activation)
    return y if residual is None else y + residual


def _unpack(packed: Sequence[Tensor], pattern: Pattern, shape: tuple[int, int]) -> BitmapMatrix:
    return BitmapMatrix(dict(zip(BitmapMatrix.NAMES, packed, strict=True)), pattern, shape)


KERNEL = Kernel(
    name="reference",
    packing="canonical",
    why_not=lambda problem: None,
    prepack=lambda matrix, config: list(matrix.tensors().values()),
    unpack=_unpack,
    run=_run,
)
