"""The canonical tensors, and block rows and block columns longest first: uneven ones end together so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ajour.formats.block import BlockMatrix
from ajour.ops.block_linear import reference
from ajour.terms.pattern import Pattern


def longest_first(offsets: Tensor) -> Tensor:
    """int32: the lists of blocks that the offsets delimit, the longest first; among equals in their order."""
    return torch.argsort(offsets.diff(), descending=True, stable=True).to(torch.int32)


def _prepack(matrix: BlockMatrix, config: str) -> list[Tensor]:
    tensors = matrix.tensors()
    return [*tensors.values(), longest_first(tensors["row_offsets"]), longest_first(tensors["column_offsets"])]


def _unpack(packed: Sequence[Tensor], pattern: Pattern, shape: tuple[int, int]) -> BlockMatrix:
    return BlockMatrix(dict(zip(BlockMatrix.NAMES, packed[:6], strict=True)), pattern, shape)


PACKING = replace(reference.KERNEL, packing="scheduled", prepack=_prepack, unpack=_unpack)
