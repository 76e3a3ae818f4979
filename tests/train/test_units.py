"""Units: entries or whole blocks, also where the last block overhangs the weight."""

from __future__ import annotations

import pytest
import torch

from ajour.terms.errors import PatternError
from ajour.terms.pattern import NM, Block, Unstructured
from ajour.train.units import live_units, unit_scores, whole_units
from pruned import keep_mask


@pytest.mark.parametrize("block", [Block(4, 4), Block(3, 5), Block(16, 1)], ids=str)
def test_units_and_entries_are_two_views_of_one_mask(block: Block) -> None:
    keep = keep_mask(block, 13, 22)
    live = live_units(keep, block, "w")
    assert live.shape == (-(-13 // block.rows), -(-22 // block.cols))
    assert torch.equal(whole_units(live, block, keep.shape), keep)
    assert torch.equal(unit_scores(keep.float(), block) > 0, live)


def test_entries_are_units_of_any_shape() -> None:
    keep = torch.rand(2, 3, 4) < 0.5
    assert live_units(keep, Unstructured(), "w") is keep
    assert whole_units(keep, Unstructured(), keep.shape) is keep


def test_masks_that_are_no_blocks_are_refused_by_name() -> None:
    keep = torch.ones(8, 8, dtype=torch.bool)
    keep[0, 0] = False
    with pytest.raises(PatternError, match=r"'fc.weight': its mask cuts through blocks, so it isn't one of block 4x4"):
        live_units(keep, Block(4, 4), "fc.weight")
    with pytest.raises(PatternError, match=r"'conv.weight': block 4x4 needs a 2-D weight \[n, k\], found \(2, 2, 2\)"):
        live_units(torch.ones(2, 2, 2, dtype=torch.bool), Block(4, 4), "conv.weight")
    with pytest.raises(PatternError, match="'w': a mask is held in units of blocks or entries, found 2:4"):
        live_units(keep, NM(2, 4), "w")
