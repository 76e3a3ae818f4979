"""What an optimizer's state_dict holds, checked against the optimizer that is to take it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ajour.terms.errors import FileError, PatternError
from ajour.train.held import Held, spread
from ajour.train.mask import Mask

State = dict[str, Tensor]


def loaded_groups(own: Sequence[Mapping[str, Any]], saved: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The saved options over the own ones; parameters, their names and `capturable` stay the own ones."""
    kept = ("params", "param_names", "capturable")
    return [
        {**mine, **{name: value for name, value in theirs.items() if name not in kept}}
        for mine, theirs in zip(own, saved, strict=True)
    ]


def paired(
    own: Sequence[Mapping[str, Any]], held: Mapping[Tensor, Held], state_dict: Mapping[str, Any]
) -> dict[Tensor, dict[str, Any]]:
    """Own parameter -> its saved state; FileError if the groups are not those of this optimizer."""
    saved = state_dict["param_groups"]
    if len(own) != len(saved):
        raise FileError(
            f"the state has {len(saved)} parameter groups, this optimizer {len(own)}: it is another model's"
        )
    pairs: dict[Tensor, dict[str, Any]] = {}
    for place, (mine, theirs) in enumerate(zip(own, saved, strict=True)):
        names = [held[p].name if p in held else "" for p in mine["params"]]
        if len(mine["params"]) != len(theirs["params"]):
            raise FileError(
                f"group {place} of the state has {len(theirs['params'])} parameters, here it has {len(names)} "
                f"({', '.join(names[:4])}, ...): it is another model's"
            )
        for ours, saved_name in zip(mine.get("param_names", ()), theirs.get("param_names", ()), strict=False):
            if ours != saved_name:
                raise FileError(f"the state is for {saved_name!r} where this optimizer has {ours!r}: another model's")
        states = state_dict["state"]
        pairs |= {p: states[key] for p, key in zip(mine["params"], theirs["params"], strict=True) if key in states}
    return pairs


def checked(held: Held, saved: Mapping[str, Any], names: Sequence[str]) -> tuple[Mask | None, State]:
    """The saved mask (None if there is none) and the saved moments in the parameter's own shape.

    names: the moments that this kind of optimizer has. FileError by the parameter's name for anything else.
    """
    shape, name = held.local.shape, held.name
    mask = _mask(held, saved)
    unknown = set(saved) - {"step", "mask", "master", *names}
    missing = [wanted for wanted in names if saved.get(wanted) is None]
    if unknown or missing:
        raise FileError(
            f"the state of {name!r} holds {', '.join(sorted(saved))}, expected step, {', '.join(names)}: "
            "it is of another kind of optimizer"
        )
    state = {"step": torch.as_tensor(saved.get("step", 1.0), dtype=torch.float32)}
    for part in (*names, *(["master"] if "master" in saved else [])):
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
    except PatternError as error:
        raise FileError(f"the mask of {held.name!r} is another model's: {error}") from None
    if held.local.shape != held.parameter.shape and mask != held.part:
        raise FileError(f"the mask of {held.name!r} is not the one it was saved under; give the optimizer that one")
    return mask
