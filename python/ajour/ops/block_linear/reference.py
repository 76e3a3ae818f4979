"""The meaning of block_linear in plain torch, on the canonical tensors: y = activation(x @ w.T + bias) + residual."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ajour.formats.block import BlockMatrix
from ajour.ops.dense import masked_linear
from ajour.terms.kernel import Kernel
from ajour.terms.pattern import Block, Pattern
from ajour.terms.row_table import RowEntry


def expand(packed: Sequence[Tensor], pattern: Block, shape: tuple[int, int]) -> Tensor:
    """w: [n, k] from blocks, rows and columns, differentiable in the blocks."""
    blocks, columns, rows = packed[0], packed[2].long(), packed[3].long()
    block_rows, block_cols = -(-shape[0] // pattern.rows), -(-shape[1] // pattern.cols)
    grid = blocks.new_zeros(block_rows * block_cols, pattern.rows, pattern.cols)
    grid = grid.index_copy(0, rows * block_cols + columns, blocks)
    dense = grid.view(block_rows, block_cols, pattern.rows, pattern.cols).transpose(1, 2)
    return dense.reshape(block_rows * pattern.rows, block_cols * pattern.cols)[: shape[0], : shape[1]]


def _run(
    x: Tensor, packed: Sequence[Tensor], bias: Tensor | None, residual: Tensor | None, activation: str, entry: RowEntry
) -> Tensor:
    assert isinstance(entry.pattern, Block)
    shape = (entry.n, entry.k)
    stored = expand([torch.ones_like(packed[0]), *packed[1:]], entry.pattern, shape) != 0
    return masked_linear(x, expand(packed, entry.pattern, shape), stored, bias, residual, activation)


def _run_t(dy: Tensor, packed: Sequence[Tensor], entry: RowEntry) -> Tensor:
    assert isinstance(entry.pattern, Block)
    return dy @ expand(packed, entry.pattern, (entry.n, entry.k))


def _unpack(packed: Sequence[Tensor], pattern: Pattern, shape: tuple[int, int]) -> BlockMatrix:
    return BlockMatrix(dict(zip(BlockMatrix.NAMES, packed, strict=True)), pattern, shape)


KERNEL = Kernel(
    name="reference",
    packing="canonical",
    why_not=lambda problem: None,
    prepack=lambda matrix, config: list(matrix.tensors().values()),
    unpack=_unpack,
    run=_run,
    run_t=_run_t,
)
