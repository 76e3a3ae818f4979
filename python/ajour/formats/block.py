"""BlockMatrix: the live blocks of a block-sparse weight."""

from __future__ import annotations

import torch
from torch import Tensor

from ajour.formats.matrix import DTYPES, SparseMatrix
from ajour.terms.errors import FormatError, PatternError
from ajour.terms.pattern import Block, Pattern


class BlockMatrix(SparseMatrix):
    """blocks: [live, rows, cols] in row-major order of blocks; a weight that isn't a multiple is padded with zeros here.

    row_offsets: int32 [block_rows + 1] and columns: int32 [live] are BCSR; rows: int32 [live] the row of each block.
    For products with the transposed weight: column_offsets: int32 [block_cols + 1] and order: int32 [live], the blocks
    sorted by column, then by row.
    """

    NAMES = ("blocks", "row_offsets", "columns", "rows", "column_offsets", "order")

    @classmethod
    def from_dense(cls, w: Tensor, pattern: Pattern) -> BlockMatrix:
        if not isinstance(pattern, Block) or w.dim() != 2 or w.dtype not in DTYPES:
            raise PatternError(f"BlockMatrix holds a 2-D weight in a block pattern, found {tuple(w.shape)} {w.dtype} as {pattern}")
        n, k = w.shape
        r, c = pattern.rows, pattern.cols
        padded = torch.nn.functional.pad(w, (0, -k % c, 0, -n % r)).view(-(-n // r), r, -(-k // c), c).transpose(1, 2)
        live = (padded != 0).flatten(2).any(-1)
        rows, columns = live.nonzero().unbind(1)
        blocks = padded[rows, columns]
        blocks = torch.where(blocks == 0, torch.zeros_like(blocks), blocks).contiguous()
        return cls(_index(blocks, rows, columns, live.shape[0], live.shape[1]), pattern, (n, k))

    def to_dense(self) -> Tensor:
        assert isinstance(self.pattern, Block)
        n, k = self.shape
        r, c = self.pattern.rows, self.pattern.cols
        dense = self.values.new_zeros(-(-n // r), -(-k // c), r, c)
        dense[self._tensors["rows"].long(), self._tensors["columns"].long()] = self.values
        return dense.transpose(1, 2).reshape(-(-n // r) * r, -(-k // c) * c)[:n, :k].contiguous()

    def validate(self) -> None:
        if not isinstance(self.pattern, Block):
            raise FormatError(f"BlockMatrix needs a block pattern, found {self.pattern}")
        n, k = self.shape
        r, c = self.pattern.rows, self.pattern.cols
        live = self.values.shape[0] if self.values.dim() else 0
        block_rows, block_cols = -(-n // r), -(-k // c)
        shapes = ((live, r, c), (block_rows + 1,), (live,), (live,), (block_cols + 1,), (live,))
        for name, shape in zip(self.NAMES, shapes, strict=True):
            if tuple(self._tensors[name].shape) != shape:
                raise FormatError(f"{name}: expected shape {shape}, found {tuple(self._tensors[name].shape)}")
        rows, columns = self._tensors["rows"].long(), self._tensors["columns"].long()
        if live and (int(rows.min()) < 0 or int(rows.max()) >= block_rows or int(columns.min()) < 0 or int(columns.max()) >= block_cols):
            raise FormatError(f"a block lies outside the {block_rows}x{block_cols} grid")
        place = rows * block_cols + columns
        if bool((place[1:] <= place[:-1]).any()):
            raise FormatError(f"block {int((place[1:] <= place[:-1]).nonzero()[0]) + 1} overlaps or precedes the one before it")
        expected = _index(self.values, rows, columns, block_rows, block_cols)
        for name in self.NAMES[1:]:
            if not torch.equal(self._tensors[name], expected[name]):
                raise FormatError(f"{name} does not agree with the blocks' rows and columns")


def _index(blocks: Tensor, rows: Tensor, columns: Tensor, block_rows: int, block_cols: int) -> dict[str, Tensor]:
    def offsets(places: Tensor, count: int) -> Tensor:
        ends = torch.bincount(places, minlength=count).cumsum(0)
        return torch.nn.functional.pad(ends, (1, 0)).to(torch.int32)

    return {
        "blocks": blocks,
        "row_offsets": offsets(rows, block_rows),
        "columns": columns.to(torch.int32),
        "rows": rows.to(torch.int32),
        "column_offsets": offsets(columns, block_cols),
        "order": torch.argsort(columns, stable=True).to(torch.int32),
    }
