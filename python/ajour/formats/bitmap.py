"""BitmapMatrix: any zeros, at one bit for each position."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ajour._native import native
from ajour.formats.matrix import Sizes, SparseMatrix
from ajour.memory import on_host, packable, packer, view
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
    HOLDS = Unstructured

    @classmethod
    def from_dense(cls, w: Tensor, pattern: Pattern = Unstructured()) -> BitmapMatrix:  # noqa: B008
        cls._check_weight(w, pattern)
        device, w = w.device, packable(w)
        sizes = _sizes_of(0, w.shape[0], w.shape[1])
        tensors = {name: w.new_empty(sizes[name][1], dtype=sizes[name][0]) for name in ("bitmaps", "offsets")}
        addresses = tensors["bitmaps"].data_ptr(), tensors["offsets"].data_ptr()
        tensors["values"] = w.new_empty(packer("find_nonzeros", w)(view(w), *addresses))
        packer("pack_bitmap", w)(view(w), lend(tensors))
        return cls({name: t.to(device) for name, t in tensors.items()}, pattern, (w.shape[0], w.shape[1]))._trusted()

    def to_dense(self) -> Tensor:
        tensors = self._packable()
        w = tensors["values"].new_empty(self.shape)
        if w.is_cuda:
            self.validate()  # as unpacking on the host does
        packer("unpack_bitmap", w)(lend(tensors), view(w))
        return w.to(self.device)

    def validate(self) -> None:
        self._check_sizes(self._tensors, self.pattern, self.shape)
        bitmaps, offsets = on_host(self._tensors["bitmaps"]), on_host(self._tensors["offsets"])
        tensors = native.BitmapTensors(0, bitmaps.data_ptr(), offsets.data_ptr(), self.values.numel())
        native.check_bitmap(tensors, native.WeightView(0, *self.shape, self.values.element_size()))

    @classmethod
    def _sizes(cls, tensors: Mapping[str, Tensor], pattern: Pattern, shape: tuple[int, int]) -> Sizes:
        values = tensors["values"]
        return _sizes_of(values.shape[0] if values.dim() else 0, *shape)


def room_for(values: Tensor, find: Callable[[Any], int], shape: tuple[int, int]) -> dict[str, Tensor]:
    """Canonical tensors of a weight [n, k] with room for its values, whose dtype and device are those of `values`.

    find: fills bitmaps, which are zeros before it, and offsets: (BitmapTensors) -> the number of values.
    """
    sizes = _sizes_of(0, *shape)
    tensors = {
        "values": values.new_empty(0),
        "bitmaps": values.new_zeros(sizes["bitmaps"][1], dtype=sizes["bitmaps"][0]),
        "offsets": values.new_empty(sizes["offsets"][1], dtype=sizes["offsets"][0]),
    }
    return tensors | {"values": values.new_empty(find(lend(tensors)))}


def _sizes_of(nonzeros: int, n: int, k: int) -> Sizes:
    tile_rows, tile_cols = -(-n // TILE), -(-k // TILE)
    groups = -(-tile_cols // GROUP_TILES)
    return {
        "values": (None, (nonzeros,)),
        "bitmaps": (torch.int64, (tile_rows, tile_cols)),
        "offsets": (torch.int32, (tile_rows * groups + 1,)),
    }


def lend(tensors: Mapping[str, Tensor]) -> Any:
    """The addresses of the tensors, which must be contiguous and outlive them."""
    return native.BitmapTensors(*(tensors[name].data_ptr() for name in BitmapMatrix.NAMES), tensors["values"].numel())
