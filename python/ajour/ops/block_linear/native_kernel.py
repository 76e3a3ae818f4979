"""block_linear on the CPU: panels of rows with the live columns that they share, in C++ for every instruction set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ajour import huge_pages
from ajour._native import native
from ajour.formats.block import BlockMatrix
from ajour.memory import on_host
from ajour.ops.block_linear import blocks_kernel
from ajour.ops.compiled import FLOATS, CompiledRun, why_not
from ajour.terms.kernel import Kernel
from ajour.terms.pattern import Block, Pattern
from ajour.terms.row_table import RowEntry


def _prepack(matrix: BlockMatrix, config: str) -> list[Tensor]:
    assert isinstance(matrix.pattern, Block)
    n, k = matrix.shape
    tensors = {name: on_host(t) for name, t in matrix.tensors().items()}
    blocks = tensors["blocks"]
    layout = native.BlockLayout(matrix.pattern.rows, matrix.pattern.cols)
    value_count, index_count = native.block_panels_sizes(layout, n, k, len(blocks), blocks.element_size())
    values = huge_pages.empty(value_count, blocks.dtype)
    index = torch.empty(index_count, dtype=torch.int32)
    lent = native.BlockTensors(*(t.data_ptr() for t in tensors.values()), len(blocks))
    shape = native.WeightView(0, n, k, blocks.element_size())
    native.pack_block_panels(layout, shape, lent, values.data_ptr(), index.data_ptr())
    return [values.to(matrix.device), index.to(matrix.device)]


def _unpack(packed: Sequence[Tensor], pattern: Pattern, shape: tuple[int, int]) -> BlockMatrix:
    assert isinstance(pattern, Block)
    values, index = (on_host(t) for t in packed)
    live, block_rows = int(index[4]), -(-shape[0] // pattern.rows)
    blocks = torch.empty(live, pattern.rows, pattern.cols, dtype=values.dtype)
    row_offsets = torch.empty(block_rows + 1, dtype=torch.int32)
    columns = torch.empty(live, dtype=torch.int32)
    lent = native.BlockTensors(blocks.data_ptr(), row_offsets.data_ptr(), columns.data_ptr(), 0, 0, 0, live)
    native.unpack_block_panels(values.data_ptr(), index.data_ptr(), values.element_size(), lent)
    rows = torch.arange(block_rows, dtype=torch.int32).repeat_interleave(row_offsets.diff())
    in_columns = torch.bincount(columns, minlength=-(-shape[1] // pattern.cols)).cumsum(0)
    column_offsets = torch.nn.functional.pad(in_columns, (1, 0)).to(torch.int32)
    order = torch.argsort(columns, stable=True).to(torch.int32)
    tensors = (blocks, row_offsets, columns, rows, column_offsets, order)
    device = packed[0].device
    return BlockMatrix({name: t.to(device) for name, t in zip(BlockMatrix.NAMES, tensors, strict=True)}, pattern, shape)


def _compiled(entry: RowEntry) -> Any:
    return native.block_linear(FLOATS[entry.dtype])


def _run_t(dy: Tensor, packed: Sequence[Tensor], entry: RowEntry) -> Tensor:
    """Through the canonical blocks, which unpacking gives in time proportional to them."""
    matrix = _unpack(packed, entry.pattern, (entry.n, entry.k))
    return blocks_kernel.run_t(dy, list(matrix.tensors().values()), entry)


KERNEL = Kernel(
    name="cpu",
    packing="cpu_panels",
    prepack=_prepack,
    unpack=_unpack,
    why_not=why_not,
    run=CompiledRun(2, _compiled),
    run_t=_run_t,
)
