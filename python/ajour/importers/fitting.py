"""Whether what was read fits into a model, found before anything of the model changes; and its filling."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ajour.importers.change import Change
from ajour.terms.errors import FileError

WRAPPERS = ("module.", "model.", "_orig_mod.")  # of DataParallel, of a wrapper's child, of torch.compile


def held_by(model: nn.Module) -> dict[str, Tensor]:
    """The parameters and buffers of the state_dict by name, tied ones under each name."""
    return {name: t for name, t in model.state_dict(keep_vars=True).items() if isinstance(t, Tensor)}


def fitted_names(names: Iterable[str], held: Mapping[str, Tensor]) -> dict[str, str]:
    """Name in a file -> name in the model: the same, or without a wrapper's prefix where every name has it."""
    names = list(names)
    for prefix in WRAPPERS:
        if names and not any(name in held for name in names) and all(name.startswith(prefix) for name in names):
            names_without = [name.removeprefix(prefix) for name in names]
            if any(name in held for name in names_without):
                return dict(zip(names, names_without, strict=True))
    return {name: name for name in names}


def changed(change: Change, held: Mapping[str, Tensor], where: str) -> tuple[str, Tensor]:
    """(name, new values) of the parameter that a change is for; raises FileError if the model has none."""
    name = next((name for name in change.names if name in held), None)
    if name is None:
        wanted = " or ".join(map(repr, change.names))
        raise FileError(f"{where} ({change.source}) is for a model with {wanted}, which this one lacks")
    base = held[name]
    if base.is_meta or is_lazy(base):
        raise FileError(f"{where} changes {name!r}, whose values this model has not got yet; load the base model")
    return name, change.apply(base.detach())


def check_whole(state: Mapping[str, Tensor], held: Mapping[str, Tensor], where: str) -> None:
    """Raises FileError, by name, unless the file has every tensor of the model, and no other; tied ones once."""
    given = {id(held[name]) for name in state if name in held}
    missing = sorted(name for name, tensor in held.items() if name not in state and id(tensor) not in given)
    for names, lacking in ((missing, "the file lacks"), (sorted(state.keys() - held.keys()), "the model lacks")):
        if names:
            some = ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
            raise FileError(
                f"{where} is of another model: {lacking} {len(names)} tensors: {some}. What holds masks alone, for a "
                "part of a model, has nothing but zeros and ones in it"
            )
    check_tensors(state, held, where)


def _check_storages(state: Mapping[str, Tensor], held: Mapping[str, Tensor], where: str) -> None:
    """Raises FileError where filling would fail midway, or one tensor's values would overwrite another's.

    Tensors may share memory without being one object. Where several do, their values are tried out on a copy of it.
    """
    sharing: dict[int, dict[int, str]] = {}
    for name in state:
        here = held[name]
        if here.is_meta or not here.numel():
            continue
        if any(side > 1 and step == 0 for side, step in zip(here.shape, here.stride(), strict=True)):
            raise FileError(f"{where}: the model's {name!r} is expanded and can't be filled; make it contiguous first")
        sharing.setdefault(here.untyped_storage().data_ptr(), {}).setdefault(id(here), name)
    for names in sharing.values():
        if len(names) > 1:
            copy = torch.UntypedStorage(held[next(iter(names.values()))].untyped_storage().nbytes())
            views = {name: _view(copy, held[name]) for name in names.values()}
            for name, view in views.items():
                view.copy_(state[name])
            for name, view in views.items():
                if not torch.equal(_bits(view), _bits(state[name].cpu())):
                    raise FileError(f"{where}: {name!r} shares its memory in the model with a tensor that differs")


def _view(storage: torch.UntypedStorage, like: Tensor) -> Tensor:
    with torch.no_grad():
        empty = torch.empty(0, dtype=like.dtype)
        return empty.set_(storage, like.storage_offset(), like.shape, like.stride())


def check_tensors(state: Mapping[str, Tensor], held: Mapping[str, Tensor], where: str) -> None:
    """Raises FileError, by name, for a shape or dtype that is not the model's, or ties that the file undoes."""
    first: dict[int, str] = {}
    for name, value in state.items():
        here = held[name]
        if is_lazy(here):
            raise FileError(f"{where}: the model's {name!r} is not initialized yet; run it once on an example")
        if here.shape != value.shape:
            raise FileError(f"{where}: {name!r} is {tuple(value.shape)} in the file, {tuple(here.shape)} in the model")
        if here.dtype != value.dtype:
            kind = str(value.dtype).removeprefix("torch.")
            raise FileError(
                f"{where}: {name!r} is {kind} in the file, {here.dtype} in the model; call model.to({kind})"
            )
        twin = first.setdefault(id(here), name)
        if twin != name and not torch.equal(_bits(state[twin]), _bits(value)):
            raise FileError(f"{where}: {name!r} and {twin!r} are tied in the model, and differ in the file")
    _check_storages(state, held, where)


def _bits(tensor: Tensor) -> Tensor:
    """Its bytes: a NaN is equal to itself."""
    return tensor.contiguous().view(-1).view(torch.uint8)


def fill(model: nn.Module, state: Mapping[str, Tensor], held: Mapping[str, Tensor]) -> None:
    """Puts the values into the model's own tensors; those on the meta device are replaced, tied ones together."""
    fresh: dict[int, Tensor] = {}
    paths = dict(model.named_modules(remove_duplicate=False))
    with torch.no_grad():
        for name, value in state.items():
            here = held[name]
            if not here.is_meta:
                here.copy_(value)
            elif id(here) not in fresh:
                is_parameter = isinstance(here, nn.Parameter)
                fresh[id(here)] = nn.Parameter(value, requires_grad=here.requires_grad) if is_parameter else value
        for name, here in held.items():
            if id(here) in fresh:
                path, _, leaf = name.rpartition(".")
                module = paths[path]
                places: dict[str, Any] = module._parameters if leaf in module._parameters else module._buffers
                places[leaf] = fresh[id(here)]
