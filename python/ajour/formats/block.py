"""BlockMatrix: the live blocks of a block-sparse weight."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ajour._native import native
from ajour.formats.matrix import Sizes, SparseMatrix
from ajour.memory import HOST, on_host, view
from ajour.terms.pattern import Block, Pattern


class BlockMatrix(SparseMatrix):
    """blocks: [live, rows, cols] in row-major order of blocks; a weight that isn't a multiple is padded with zeros.

    row_offsets: int32 [block_rows + 1] and columns: int32 [live] are BCSR; rows: int32 [live] the row of each block.
    For products with the transposed weight: column_offsets: int32 [block_cols + 1] and order: int32 [live], the blocks
    sorted by column, then by row.
    """

    NAMES = ("blocks", "row_offsets", "columns", "rows", "column_offsets", "order")
    HOLDS = Block

    @classmethod
    def from_dense(cls, w: Tensor, pattern: Pattern) -> BlockMatrix:
        cls._check_weight(w, pattern)
        device, w = w.device, on_host(w)
        n, k = w.shape
        layout = _layout(pattern)
        grid = torch.empty(layout.block_rows(n), layout.block_cols(k), dtype=torch.uint8, device=HOST)
        live = native.find_blocks(layout, view(w), grid.data_ptr())
        tensors = {
            name: torch.empty(sizes, dtype=dtype or w.dtype, device=HOST)
            for name, (dtype, sizes) in _sizes_of(live, pattern, (n, k)).items()
        }
        native.pack_blocks(layout, view(w), grid.data_ptr(), _lend(tensors))
        return cls({name: t.to(device) for name, t in tensors.items()}, pattern, (n, k))._trusted()

    def to_dense(self) -> Tensor:
        tensors = self._on_host()
        w = torch.empty(self.shape, dtype=self.dtype, device=HOST)
        native.unpack_blocks(_layout(self.pattern), _lend(tensors), view(w))
        return w.to(self.device)

    def validate(self) -> None:
        tensors = self._on_host()
        size = native.WeightView(0, *self.shape, self.values.element_size())
        native.check_blocks(_layout(self.pattern), _lend(tensors), size)

    @classmethod
    def _sizes(cls, tensors: Mapping[str, Tensor], pattern: Pattern, shape: tuple[int, int]) -> Sizes:
        blocks = tensors["blocks"]
        return _sizes_of(blocks.shape[0] if blocks.dim() else 0, pattern, shape)


def _sizes_of(live: int, pattern: Pattern, shape: tuple[int, int]) -> Sizes:
    assert isinstance(pattern, Block)
    layout = _layout(pattern)
    return {
        "blocks": (None, (live, pattern.rows, pattern.cols)),
        "row_offsets": (torch.int32, (layout.block_rows(shape[0]) + 1,)),
        "columns": (torch.int32, (live,)),
        "rows": (torch.int32, (live,)),
        "column_offsets": (torch.int32, (layout.block_cols(shape[1]) + 1,)),
        "order": (torch.int32, (live,)),
    }


def _layout(pattern: Pattern) -> Any:
    assert isinstance(pattern, Block)
    return native.BlockLayout(pattern.rows, pattern.cols)


def _lend(tensors: Mapping[str, Tensor]) -> Any:
    """The addresses of the tensors, which must be on the host and outlive them."""
    return native.BlockTensors(*(tensors[name].data_ptr() for name in BlockMatrix.NAMES), tensors["blocks"].shape[0])
