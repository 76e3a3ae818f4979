"""Where a model's parameters live, by name, for what is trained in their stead."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from torch import nn
from torch.nn.utils import parametrize

from ajour.terms.errors import ConversionError


class Place(NamedTuple):
    """A parameter, the module that holds it and its name there."""

    module: nn.Module
    leaf: str
    parameter: nn.Parameter


def find_places(model: nn.Module, names: Iterable[str]) -> dict[str, Place]:
    """name -> its place; raises ConversionError for a name that isn't a parameter, and for a tied one."""
    held: dict[str, nn.Parameter] = dict(model.named_parameters(remove_duplicate=False))
    places = {}
    for name in names:
        if name not in held:
            raise ConversionError(f"{name!r} is no parameter of this model; it has {', '.join(list(held)[:8])}, ...")
        twin = next((other for other, p in held.items() if p is held[name] and other != name), None)
        if twin is not None:
            raise ConversionError(f"{name!r} is tied to {twin!r}; a parametrization of one would untie them")
        path, _, leaf = name.rpartition(".")
        places[name] = Place(model.get_submodule(path), leaf, held[name])
    return places


def parametrize_all(places: Mapping[str, Place], steps: Mapping[str, nn.Module]) -> None:
    """Puts the step of each name before its parameter, which the layer goes on reading under its old name."""
    for name, (module, leaf, _) in places.items():
        parametrize.register_parametrization(module, leaf, steps[name])
