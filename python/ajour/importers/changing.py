"""find_changes: what a file does to a base model, for the kinds that hold no whole weights."""

from __future__ import annotations

from ajour.importers import lt_sft, mapping, mask_sparsity, peft_sft, r_amt
from ajour.importers.change import Change
from ajour.importers.checkpoint import Checkpoint
from ajour.importers.restoring import check_expansion


def find_changes(checkpoint: Checkpoint, mask_key: str | None = None) -> list[Change]:
    """All of them, [] for a file that holds whole weights; raises FileError, naming the parameter, if it is damaged."""
    found = _found(checkpoint, mask_key)
    if checkpoint.contents is not None:
        check_expansion(checkpoint, sum(change.size for change in found))
    return found


def _found(checkpoint: Checkpoint, mask_key: str | None) -> list[Change]:
    shapes, held = checkpoint.shapes, checkpoint.contents
    if held is not None and lt_sft.is_one(held.state):
        return list(lt_sft.changes(held.state, held.file.read))
    if held is not None and r_amt.is_one(held.state):
        return list(r_amt.changes(held.state))
    if peft_sft.is_one(shapes):
        return list(peft_sft.changes(checkpoint, shapes))
    if mask_key is not None:
        whole = any(True for _ in mapping.places(shapes, mask_key))
        return [] if whole else list(mapping.keyed_changes(checkpoint, shapes, mask_key))
    if mask_sparsity.is_one(checkpoint, shapes):
        return list(mask_sparsity.changes(checkpoint, shapes))
    return list(mapping.changes(checkpoint, shapes)) if mapping.are_masks(checkpoint, shapes) else []
