"""What lives or dies as one when a mask changes: single entries, or whole blocks."""

from __future__ import annotations

import torch
from torch import Tensor

from ajour.magnitude import block_sums, spread
from ajour.terms.errors import PatternError
from ajour.terms.pattern import Block, Pattern, Unstructured

ENTRIES = Unstructured()


def unit_scores(scores: Tensor, pattern: Pattern) -> Tensor:
    """One score for each unit: the entries of any shape themselves, or the sums over the blocks of [n, k]."""
    return block_sums(scores, pattern) if isinstance(pattern, Block) else scores


def live_units(keep: Tensor, pattern: Pattern, name: str) -> Tensor:
    """bool: which units a mask keeps; raises PatternError, by name, for a mask that cuts through a block."""
    if isinstance(pattern, Unstructured):
        return keep
    if not isinstance(pattern, Block):
        raise PatternError(f"{name!r}: a mask is held in units of blocks or entries, found {pattern}")
    if keep.dim() != 2:
        raise PatternError(f"{name!r}: {pattern} needs a 2-D weight [n, k], found {tuple(keep.shape)}")
    live = block_sums(keep.to(torch.float32), pattern) > 0
    if not torch.equal(whole_units(live, pattern, keep.shape), keep):
        raise PatternError(f"{name!r}: its mask cuts through blocks, so it isn't one of {pattern}; use Unstructured()")
    return live


def whole_units(live: Tensor, pattern: Pattern, shape: tuple[int, ...]) -> Tensor:
    """bool of `shape`: the entries of the units that live."""
    return spread(live, pattern, (shape[0], shape[1])) if isinstance(pattern, Block) else live
