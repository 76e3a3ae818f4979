"""What an optimizer's state_dict holds, checked against the optimizer that is to take it."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ajour.ops.masked_update.update import STATES
from ajour.terms.errors import FileError, PatternError
from ajour.train.held import LATE, Held, spread
from ajour.train.mask import Mask

State = dict[str, Tensor]


def loaded_groups(own: Sequence[Mapping[str, Any]], state_dict: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Copies of the saved options over the own ones; parameters, their names and `capturable` stay the own ones.

    FileError for what isn't a state_dict, for groups that are not those of this optimizer, and for an Adam whose weight
    decay isn't decoupled.
    """
    for part in ("state", "param_groups"):
        if part not in state_dict:
            there = ", ".join(map(str, state_dict)) or "nothing"
            raise FileError(f"this holds {there} and no {part!r}; expected what an optimizer's state_dict() gave")
    saved = state_dict["param_groups"]
    if len(own) != len(saved):
        raise FileError(
            f"the state has {len(saved)} parameter groups, this optimizer {len(own)}: it is another model's"
        )
    kept = ("params", "param_names", "capturable")
    groups = []
    for place, (mine, theirs) in enumerate(zip(own, saved, strict=True)):
        if theirs.get("decoupled_weight_decay") is False and theirs["weight_decay"] != 0:
            raise FileError(
                f"group {place} of the state is Adam's, with a weight decay of {theirs['weight_decay']}, not AdamW's; "
                "make it 0, or go on with torch.optim.Adam"
            )
        groups.append({**mine, **{key: copy.deepcopy(value) for key, value in theirs.items() if key not in kept}})
    return groups


def loaded_states(
    groups: Sequence[Mapping[str, Any]], rules: Sequence[str], widest: str, held: Mapping[Tensor, Held],
    state_dict: Mapping[str, Any],
) -> dict[Tensor, tuple[Mask | None, State]]:  # fmt: skip
    """Own parameter -> its saved mask (None if there is none) and its saved moments in its own shape.

    groups, rules: the own ones as they will be. widest: the rule that has every moment which such an optimizer may
    have. FileError by name for a state of other parameters or another kind of optimizer.
    """
    found: dict[Tensor, tuple[Mask | None, State]] = {}
    states = state_dict["state"]
    for place, (mine, rule, theirs) in enumerate(zip(groups, rules, state_dict["param_groups"], strict=True)):
        names = [held[p].name if p in held else "" for p in mine["params"]]
        if len(mine["params"]) != len(theirs["params"]):
            raise FileError(
                f"group {place} of the state has {len(theirs['params'])} parameters, here it has {len(names)} "
                f"({', '.join(names[:4])}, ...): it is another model's"
            )
        for ours, saved_name in zip(mine.get("param_names", ()), theirs.get("param_names", ()), strict=False):
            if ours != saved_name:
                raise FileError(f"the state is for {saved_name!r} where this optimizer has {ours!r}: another model's")
        for parameter, key in zip(mine["params"], theirs["params"], strict=True):
            if key in states:
                found[parameter] = _checked(held[parameter], states[key], STATES[rule], STATES[widest])
    return found


def _checked(
    held: Held, given: Mapping[str, Any], needed: Sequence[str], possible: Sequence[str]
) -> tuple[Mask | None, State]:
    """needed, possible: the moments that the rule, and this kind of optimizer at all, has."""
    shape, name = held.local.shape, held.name
    saved = {part: value for part, value in given.items() if value is not None}  # torch's SGD without a momentum yet
    mask = _mask(held, saved)
    unknown = set(saved) - {"step", "mask", "master", *possible}
    begun = bool(saved.keys() - {"mask"})
    missing = [part for part in needed if part not in saved and part not in LATE] if begun else []
    if unknown or missing:
        raise FileError(
            f"the state of {name!r} holds {', '.join(sorted(saved))}, expected step, {', '.join(needed)}: "
            "it is of another kind of optimizer"
        )
    state = {"step": torch.as_tensor(saved.get("step", 1.0), dtype=torch.float32)} if begun else {}
    for part in (part for part in ("master", *possible) if part in saved):
        moment = saved[part]
        kept = shape.numel() if mask is None else mask.kept
        if moment.shape not in (shape, (kept,)):
            raise FileError(
                f"{part} of {name!r} is {tuple(moment.shape)}, the parameter {tuple(shape)} with {kept} kept entries: "
                "it is another model's"
            )
        state[part] = spread(moment, None if mask is None else mask.bits.to(moment.device), shape)
    return mask, state


def _mask(held: Held, saved: Mapping[str, Any]) -> Mask | None:
    if "mask" not in saved:
        return None
    if held.mask is None:
        raise FileError(f"the state holds a mask for {held.name!r}, this optimizer none; give it masks, too")
    try:
        mask = Mask(saved["mask"], held.local.shape)
        if not held.sharded:
            held.check(mask)
    except PatternError as error:
        raise FileError(f"the mask of {held.name!r} is another model's: {error}") from None
    if held.local.shape != held.parameter.shape and mask != held.part:
        raise FileError(f"the mask of {held.name!r} is not the one it was saved under; give the optimizer that one")
    return mask
