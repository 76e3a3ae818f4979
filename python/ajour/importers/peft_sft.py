"""PEFT-SFT (SpIEL): `X.sft_delta[.<adapter>].values` and `.indices`, sorted row-major places, added to X.weight."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial

import torch
from torch import Tensor

from ajour.importers.change import Change, added, replaced
from ajour.importers.tool import Shapes
from ajour.terms.errors import FileError

NAME = "PEFT-SFT"
_DELTA = ".sft_delta."
_WRAPPER = "base_model.model."  # PEFT's, around the model


def is_one(shapes: Shapes) -> bool:
    """Whether some tensor is a delta's."""
    return any(_DELTA in name and name.endswith(".values") for name in shapes)


def changes(tensors: Mapping[str, Tensor], shapes: Shapes) -> Iterator[Change]:
    """One for each delta, and one for each tensor that was trained whole beside them."""
    layers: dict[str, str] = {}
    for name, shape in shapes.items():
        layer, delta, part = name.removeprefix(_WRAPPER).partition(_DELTA)
        if not delta:
            yield replaced(name.removeprefix(_WRAPPER), NAME, shape, partial(tensors.__getitem__, name))
        elif part.rpartition(".")[2] == "values":
            indices = name.removesuffix("values") + "indices"
            if shape != shapes.get(indices) or len(shape) != 1:
                raise FileError(f"{name}: expected one place in {indices} for each of its values")
            if layers.setdefault(layer, name) != name:
                raise FileError(f"{layer} has the deltas of several adapters ({layers[layer]}, {name}); keep one")
            apply = partial(_apply, tensors, name, indices)
            yield Change(layer, (f"{layer}.weight",), NAME, "difference", apply)


def _apply(tensors: Mapping[str, Tensor], values: str, indices: str, base: Tensor) -> Tensor:
    places = tensors[indices]
    if places.dtype not in (torch.int32, torch.int64):
        raise FileError(f"{indices}: expected int32 or int64, found {places.dtype}")
    places = places.long()
    if places.numel() and (
        not bool((places[1:] > places[:-1]).all()) or int(places[0]) < 0 or int(places[-1]) >= base.numel()
    ):
        raise FileError(f"{indices}: expected sorted places within {tuple(base.shape)}, each named once")
    return added(base, places, tensors[values], values)
