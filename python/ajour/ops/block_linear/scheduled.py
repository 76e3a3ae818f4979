"""The canonical tensors, and block rows and block columns longest first: uneven ones end together so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from ajour.formats.block import BlockMatrix
from ajour.ops.block_linear import reference
from ajour.terms.pattern import Pattern


def longest_first(offsets: Tensor) -> Tensor:
    """int32: the lists of blocks that the offsets delimit, the longest first; among equals in their order."""
    return torch.argsort(offsets.diff(), descending=True, stable=True).to(torch.int32)


_ORDERS = WeakTensorKeyDictionary()  # offsets -> the version of them that was sorted, and the order


def remembered_order(offsets: Tensor) -> Tensor:
    """`longest_first(offsets)`, sorted once for as long as they stay the same: a layer that is trained packs none.

    Any permutation gives the same result, so one of offsets that were replaced behind torch's back (`.data`) is slower
    at most. What is sorted while a CUDA graph is captured has no value yet, and is not kept.
    """
    if offsets.is_inference():
        return longest_first(offsets)
    held: tuple[int, Tensor] | None = _ORDERS.get(offsets)
    if held and held[0] == offsets._version and held[1].device == offsets.device:
        return held[1]
    order = longest_first(offsets)
    if not (offsets.is_cuda and torch.cuda.is_current_stream_capturing()):
        _ORDERS[offsets] = (offsets._version, order)
    return order


def _prepack(matrix: BlockMatrix, config: str) -> list[Tensor]:
    tensors = matrix.tensors()
    return [*tensors.values(), longest_first(tensors["row_offsets"]), longest_first(tensors["column_offsets"])]


def _unpack(packed: Sequence[Tensor], pattern: Pattern, shape: tuple[int, int]) -> BlockMatrix:
    return BlockMatrix(dict(zip(BlockMatrix.NAMES, packed[:6], strict=True)), pattern, shape)


PACKING = replace(reference.KERNEL, packing="scheduled", prepack=_prepack, unpack=_unpack)
