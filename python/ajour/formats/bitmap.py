"""BitmapMatrix: any zeros, at one bit for each position."""

from __future__ import annotations

import torch
from torch import Tensor

from ajour.formats.matrix import DTYPES, SparseMatrix
from ajour.terms.errors import FormatError, PatternError
from ajour.terms.pattern import Pattern, Unstructured

TILE = 8  # rows and columns of a tile
GROUP_TILES = 8  # neighbouring tiles of one tile row that share an offset


class BitmapMatrix(SparseMatrix):
    """Tiles of 8x8: bitmaps: int64 [tile_rows, tile_cols], bit 8 * r + c set where (r, c) of the tile is not zero.

    values: [non-zeros] tile by tile, each in the order of its bits. offsets: int32 [tile_rows * groups + 1], where the
    values of each group of 8 neighbouring tiles of a tile row begin, groups = ceil(tile_cols / 8). Rows and columns
    beyond the weight are zeros.
    """

    NAMES = ("values", "bitmaps", "offsets")

    @classmethod
    def from_dense(cls, w: Tensor, pattern: Pattern = Unstructured()) -> BitmapMatrix:  # noqa: B008
        if not isinstance(pattern, Unstructured) or w.dim() != 2 or w.dtype not in DTYPES:
            raise PatternError(f"BitmapMatrix holds a 2-D weight as unstructured, found {tuple(w.shape)} {w.dtype} as {pattern}")
        n, k = w.shape
        padded = torch.nn.functional.pad(w, (0, -k % TILE, 0, -n % TILE))
        tiles = padded.view(-(-n // TILE), TILE, -(-k // TILE), TILE).transpose(1, 2).flatten(2)
        live = tiles != 0
        bitmaps = (live.long() << torch.arange(64, device=w.device)).sum(-1)
        return cls({"values": tiles[live], "bitmaps": bitmaps, "offsets": _offsets(live.sum(-1))}, pattern, (n, k))

    def to_dense(self) -> Tensor:
        n, k = self.shape
        bitmaps = self._tensors["bitmaps"]
        live = (bitmaps.unsqueeze(-1) >> torch.arange(64, device=self.device)) & 1 != 0
        tiles = self.values.new_zeros(live.shape)
        tiles[live] = self.values
        rows, cols = bitmaps.shape
        return tiles.view(rows, cols, TILE, TILE).transpose(1, 2).reshape(rows * TILE, cols * TILE)[:n, :k].contiguous()

    def validate(self) -> None:
        n, k = self.shape
        tile_rows, tile_cols = -(-n // TILE), -(-k // TILE)
        bitmaps, offsets = self._tensors["bitmaps"], self._tensors["offsets"]
        if tuple(bitmaps.shape) != (tile_rows, tile_cols) or bitmaps.dtype != torch.int64:
            raise FormatError(f"bitmaps: expected int64 of shape {(tile_rows, tile_cols)}, found {bitmaps.dtype} of {tuple(bitmaps.shape)}")
        live = (bitmaps.unsqueeze(-1) >> torch.arange(64, device=self.device)) & 1 != 0
        grid = live.view(tile_rows, tile_cols, TILE, TILE).transpose(1, 2).reshape(tile_rows * TILE, tile_cols * TILE)
        if bool(grid[n:].any()) or bool(grid[:, k:].any()):
            raise FormatError(f"bitmaps: a bit is set outside the {n}x{k} weight")
        expected = _offsets(live.sum(-1))
        if not torch.equal(offsets, expected) or self.values.shape != (int(expected[-1]),):
            raise FormatError("offsets or values do not agree with the bits that are set")


def _offsets(counts: Tensor) -> Tensor:
    tile_rows, tile_cols = counts.shape
    groups = -(-tile_cols // GROUP_TILES)
    padded = torch.nn.functional.pad(counts, (0, groups * GROUP_TILES - tile_cols))
    ends = padded.view(tile_rows * groups, GROUP_TILES).sum(-1).cumsum(0)
    return torch.nn.functional.pad(ends, (1, 0)).to(torch.int32)
