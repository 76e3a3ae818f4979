"""The meaning of block_linear in plain torch, on the canonical tensors: y = activation(x @ w.T + bias) + residual."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from ajour.formats.block import BlockMatrix
from ajour.ops.reference_kernel import reference_kernel
from ajour.terms.pattern import Block
from ajour.terms.row_table import RowEntry


def expand(packed: Sequence[Tensor], pattern: Block, shape: tuple[int, int]) -> Tensor:
    """w: [n, k] from blocks, rows and columns, differentiable in the blocks."""
    blocks, columns, rows = packed[0], packed[2].long(), packed[3].long()
    block_rows, block_cols = -(-shape[0] // pattern.rows), -(-shape[1] // pattern.cols)
    grid = blocks.new_zeros(block_rows * block_cols, pattern.rows, pattern.cols)
    grid = grid.index_copy(0, rows * block_cols + columns, blocks)
    dense = grid.view(block_rows, block_cols, pattern.rows, pattern.cols).transpose(1, 2)
    return dense.reshape(block_rows * pattern.rows, block_cols * pattern.cols)[: shape[0], : shape[1]]


def _run_t(dy: Tensor, packed: Sequence[Tensor], entry: RowEntry) -> Tensor:
    assert isinstance(entry.pattern, Block)
    return dy @ expand(packed, entry.pattern, (entry.n, entry.k))


KERNEL = replace(reference_kernel(BlockMatrix, expand), run_t=_run_t)
