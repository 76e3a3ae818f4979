"""find_changes: what a file does to a base model, for the kinds that hold no whole weights."""

from __future__ import annotations

from ajour.importers import lt_sft, mapping, mask_sparsity, peft_sft, r_amt
from ajour.importers.change import Change
from ajour.importers.checkpoint import Checkpoint
from ajour.importers.live import TOOLS
from ajour.importers.restoring import check_expansion
from ajour.importers.saved import FORMAT
from ajour.terms.errors import FileError


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
        if any(True for _ in mapping.places(shapes, mask_key)):
            return []
        if not (found := list(mapping.keyed_changes(checkpoint, shapes, mask_key))):
            raise FileError(
                f"{checkpoint.path} holds no mask under {mask_key!r}; it holds {', '.join(list(shapes)[:4])}"
            )
        return found
    if mask_sparsity.is_one(checkpoint, shapes):
        return list(mask_sparsity.changes(checkpoint, shapes))
    masked_already = any(tool.shapes_a_weight(name, shapes) for tool in TOOLS for name in shapes)
    if checkpoint.metadata.get("format") == FORMAT or masked_already:
        return []
    return list(mapping.changes(checkpoint, shapes)) if mapping.are_masks(checkpoint, shapes) else []
