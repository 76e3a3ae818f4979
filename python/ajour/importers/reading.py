"""read: anybody's pruned model as dense tensors with zeros where it was pruned."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from os import PathLike
from typing import overload

import torch
from torch import Tensor, nn

from ajour.importers import mapping
from ajour.importers.change import Change
from ajour.importers.changing import find_changes
from ajour.importers.checkpoint import Checkpoint, in_memory, open_checkpoint
from ajour.importers.compressed_tensors import refuse_codes, refuse_quantized
from ajour.importers.fitting import changed, check_tensors, check_whole, fill, fitted_names, held_by
from ajour.importers.restoring import restored
from ajour.terms.errors import FileError

Source = str | PathLike[str] | Mapping[str, Tensor]


@overload
def read(path: Source, model: None = None, mask_key: str | None = None, *, progress: bool = True) -> dict[str, Tensor]:
    """Without a model, its state_dict."""


@overload
def read(path: Source, model: nn.Module, mask_key: str | None = None, *, progress: bool = True) -> nn.Module:
    """With a model, the model filled."""


def read(
    path: Source, model: nn.Module | None = None, mask_key: str | None = None, *, progress: bool = True
) -> dict[str, Tensor] | nn.Module:
    """A pruned model's state_dict of dense tensors, on the CPU, with zeros where it was pruned; or the model filled.

    path:     a file or folder of any tool that docs/reading.md lists, or a mapping of tensors by name.
    model:    is filled in place and returned, all or nothing. Whole weights must be those of this very model, by name,
              shape and dtype. Masks and differences (LT-SFT, PEFT-SFT, R-AMT, MaskSparsity, OpenLTH's mask.pth) change
              the values that it has.
    mask_key: where masks stand that no known tool wrote, such as "{name}.kept"; {name} is a weight's name without
              ".weight". A mask's 1 is kept, its 0 is pruned.
    progress: a bar on stderr, if it is a terminal.

    Each weight is what the tool's own forward multiplies by, bit for bit. A file is read tensor by tensor, so there is
    no more in memory than the result and one shard. Without model= masks and differences come back as they are, with a
    warning; so does a weight whose mask the file has lost. Nothing in a file ever runs: a pickle may hold tensors and
    plain containers, and anything else in it is refused by its name.

    Raises FileError, naming the tensor, for what is damaged, of an unknown or quantized kind, or of another model.
    """
    if mask_key is not None:
        mapping.check_key(mask_key)
    if not isinstance(path, (str, PathLike, Mapping)):
        raise FileError(f"expected a path, or a mapping of tensors by name, found {type(path).__name__}")
    checkpoint = in_memory(path) if isinstance(path, Mapping) else open_checkpoint(path)
    try:
        with torch.inference_mode(False), torch.no_grad():
            refuse_codes(checkpoint, str(checkpoint.path))
            changes = find_changes(checkpoint, mask_key)
            if changes:
                return _alone(checkpoint, changes) if model is None else _change(checkpoint, changes, model)
            state = _whole(checkpoint, mask_key, progress)
            return state if model is None else _fill(checkpoint, state, model)
    finally:
        checkpoint.close()


def _whole(checkpoint: Checkpoint, mask_key: str | None, progress: bool) -> dict[str, Tensor]:
    """Every tensor with memory of its own, but for those that are tied in the file."""
    from ajour.importers.progress import bar  # rich is slow to import, and only wanted here

    refuse_quantized(checkpoint.config, str(checkpoint.path))
    stored = restored(checkpoint, mask_key)
    if not stored:
        raise FileError(f"{checkpoint.path} holds no weights that ajour knows how to read")
    state: dict[str, Tensor] = {}
    with bar(progress, checkpoint.path.name, len(stored)) as advance:
        for each in stored:
            value = each.read()
            state[each.name] = value if each.made or not checkpoint.mapped else value.clone()
            advance()
            if each.note:
                warnings.warn(f"{each.name}: {each.note}", stacklevel=3)
    return state


def _alone(checkpoint: Checkpoint, changes: list[Change]) -> dict[str, Tensor]:
    if shapeless := next((change for change in changes if change.alone is None), None):
        raise FileError(
            f"{checkpoint.path} ({shapeless.source}) changes a base model and does not say the shapes of its weights; "
            "give model="
        )
    kinds = " and ".join(sorted({change.what for change in changes}))
    warnings.warn(
        f"{checkpoint.path} ({changes[0].source}) holds no whole model; what comes back is for a base model: {kinds}. "
        "Give model= to apply it",
        stacklevel=3,
    )
    return {change.key: change.alone() for change in changes if change.alone is not None}


def _change(checkpoint: Checkpoint, changes: list[Change], model: nn.Module) -> nn.Module:
    held, where = held_by(model), str(checkpoint.path)
    first = [name for change in changes for name in change.names[:1]]
    short = fitted_names(first, held)
    state: dict[str, Tensor] = {}
    done: dict[int, str] = {}
    for change, name in zip(changes, first, strict=True):
        cut = len(name) - len(short[name])
        names = tuple(each[cut:] for each in change.names) if cut else change.names
        target, value = changed(replace(change, names=names), held, where)
        if done.setdefault(id(held[target]), name) != name:
            raise FileError(f"{where} changes {target!r} twice, as it is tied in the model to another that it changes")
        state[target] = value
    check_tensors(state, held, where)
    fill(model, state, held)
    return model


def _fill(checkpoint: Checkpoint, state: dict[str, Tensor], model: nn.Module) -> nn.Module:
    held, where = held_by(model), str(checkpoint.path)
    names = fitted_names(state, held)
    state = {names[name]: value for name, value in state.items()}
    check_whole(state, held, where)
    fill(model, state, held)
    return model
