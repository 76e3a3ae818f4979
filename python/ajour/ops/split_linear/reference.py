"""The meaning of split_linear in plain torch, on the canonical tensors: y = activation(x @ w.T + bias) + residual."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from ajour.formats.split import SplitMatrix
from ajour.ops.reference_kernel import reference_kernel
from ajour.terms.pattern import Pattern


def pair_columns(positions: Tensor, groups: int) -> Tensor:
    """The column, in k padded to whole groups, of each value of the 2:4 part: int64 [n, 2 * groups]."""
    codes = torch.stack((positions & 15, positions >> 4), -1).flatten(1)[:, :groups].long()
    within = torch.stack((codes & 3, codes >> 2), -1)
    return (within + 4 * torch.arange(groups, device=positions.device).unsqueeze(-1)).flatten(1)


def rest_places(bitmaps: Tensor, count: int) -> Tensor:
    """Where each value of the rest stands among the tiles' positions, 64 a tile: int64 [count]."""
    live = (bitmaps.unsqueeze(-1) >> torch.arange(64, device=bitmaps.device)) & 1
    return torch.nonzero_static(live.flatten(), size=count).squeeze(1)  # static, so that it compiles


def expand(packed: Sequence[Tensor], pattern: Pattern, shape: tuple[int, int]) -> Tensor:
    """w: [n, k], the sum of both parts, differentiable in the values."""
    values, positions, bitmaps, _ = packed
    (n, k), (tile_rows, tile_cols) = shape, bitmaps.shape
    groups = -(-k // 4)
    pairs, rest = values[: n * groups * 2].view(n, groups * 2), values[n * groups * 2 :]
    w = values.new_zeros(n, groups * 4).scatter(1, pair_columns(positions, groups), pairs)
    tiles = values.new_zeros(tile_rows * tile_cols * 64).index_copy(0, rest_places(bitmaps, rest.shape[0]), rest)
    dense = tiles.view(tile_rows, tile_cols, 8, 8).transpose(1, 2).reshape(tile_rows * 8, tile_cols * 8)
    return w[:, :k] + dense[:n, :k]


def collect(dw: Tensor, packed: Sequence[Tensor], pattern: Pattern) -> Tensor:
    """The gradient of the values from dw: [n, k], the gradient of the dense weight; zero where a group overhangs k."""
    values, positions, bitmaps, _ = packed
    (n, k), (tile_rows, tile_cols) = dw.shape, bitmaps.shape
    groups = -(-k // 4)
    pairs = pad(dw, (0, -k % 4)).gather(1, pair_columns(positions, groups)).flatten()
    tiles = pad(dw, (0, -k % 8, 0, -n % 8)).view(tile_rows, 8, tile_cols, 8).transpose(1, 2).reshape(-1)
    return torch.cat((pairs, tiles[rest_places(bitmaps, values.shape[0] - n * groups * 2)]))


KERNEL = reference_kernel(SplitMatrix, expand)
