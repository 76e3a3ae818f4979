"""Whether a file fits into a model: everything that can be wrong is found here, before anything changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ajour.conversion.fusion import Fusion, find_fusions
from ajour.importers.saved import Saved, SavedLayer
from ajour.layers import ON_META, Layer, find_layers
from ajour.nn import SparseLinear
from ajour.terms.errors import FileError


@dataclass(frozen=True)
class Place:
    """Where a saved layer goes; `fusion` is the activation that it takes over there, if any."""

    layer: Layer
    saved: SavedLayer
    fusion: Fusion | None


def find_places(saved: Saved, model: nn.Module) -> list[Place]:
    """The place of every saved layer; raises FileError, naming layer or tensor, for a model of another skeleton."""
    layers = {layer.name: layer for layer in find_layers(model)}
    fusions = find_fusions(model)
    places = []
    for name, held in saved.layers.items():
        layer = layers.get(name)
        if layer is None:
            raise FileError(f"{saved.path} is of another model: it holds the layer {name!r}, this model has none there")
        if refusal := _why_not_layer(layer, held):
            raise FileError(f"{saved.path} is of another model: layer {name!r}: {refusal}")
        own = layer.module.activation if isinstance(layer.module, SparseLinear) else "none"
        fusion = None if held.activation == own else fusions.get(name)
        if held.activation != own and (fusion is None or fusion.activation != held.activation):
            raise FileError(
                f"{saved.path} is of another model: layer {name!r} took over the activation {held.activation!r}, which "
                "does not follow it here"
            )
        places.append(Place(layer, held, fusion))
    for name, layer in layers.items():
        if isinstance(layer.module, SparseLinear) and name not in saved.layers:
            raise FileError(f"{saved.path} holds the layer {name!r} dense; load it into a model that is not converted")
    _check_others(saved, model, places)
    return places


def others_of(saved: Saved, model: nn.Module) -> dict[str, Tensor]:
    """The model's own tensors by name that the file holds a value for, converted layers aside."""
    owned = tuple(f"{name}." if name else "" for name in saved.layers)
    held = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    names = [
        *saved.tensors,
        *saved.ties,
        *(name for name, buffer in held.items() if buffer.is_meta and name in saved.buffers),
    ]
    return {name: held[name] for name in names if not (owned and name.startswith(owned))}


def value_of(saved: Saved, name: str) -> Tensor:
    """What the file holds under that name, ties and buffers included."""
    found = saved.tensors.get(saved.ties.get(name, name))
    return found if found is not None else saved.buffers[name]


def _why_not_layer(layer: Layer, held: SavedLayer) -> str | None:
    if layer.reason not in (None, ON_META):
        return layer.reason
    dtype, expected = (str(d).removeprefix("torch.") for d in (layer.dtype, held.matrix.dtype))
    if layer.shape != held.matrix.shape:
        return f"the file holds {'x'.join(map(str, held.matrix.shape))}, the model {'x'.join(map(str, layer.shape))}"
    if dtype != expected:
        return f"the file holds {expected}, the model {dtype}; call model.to(torch.{expected}) first"
    if (layer.module._parameters.get("bias") is None and layer.bias() is None) != (held.bias is None):
        return f"the file holds {'no bias' if held.bias is None else 'a bias'}, the model does not agree"
    return None


def _check_others(saved: Saved, model: nn.Module, places: Sequence[Place]) -> None:
    owned = tuple(f"{name}." if name else "" for name in saved.layers)
    state = {name: t for name, t in model.state_dict(keep_vars=True).items() if not (owned and name.startswith(owned))}
    names = saved.tensors.keys() | saved.ties.keys()
    for missing, where in ((state.keys() - names, "the file lacks"), (names - state.keys(), "the model lacks")):
        if missing:
            some = ", ".join(sorted(missing)[:4]) + (", ..." if len(missing) > 4 else "")
            raise FileError(f"{saved.path} is of another model: {where} {len(missing)} tensors: {some}")
    held = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    for name in state:
        if name not in held:
            raise FileError(f"{saved.path}: {name!r} is in the model's state_dict, but is no parameter or buffer of it")
        _check_tensor(saved, name, held[name], value_of(saved, name))
    for name, buffer in held.items():
        if buffer.is_meta and name not in state and not (owned and name.startswith(owned)):
            if name not in saved.buffers:
                raise FileError(f"{saved.path} lacks {name!r}, which the model has on the meta device")
            _check_tensor(saved, name, buffer, saved.buffers[name])
    _check_ties(saved, state)
    _check_tied_biases(saved, state, places)


def _check_tensor(saved: Saved, name: str, here: Tensor, there: Tensor) -> None:
    if is_lazy(here):
        raise FileError(f"{saved.path}: the model's {name!r} is not initialized yet; run it once on an example")
    if (here.shape, here.dtype) != (there.shape, there.dtype):
        expected, found = (f"{str(t.dtype).removeprefix('torch.')} {tuple(t.shape)}" for t in (there, here))
        raise FileError(f"{saved.path} is of another model: {name!r}: the file holds {expected}, the model {found}")


def _check_ties(saved: Saved, state: Mapping[str, object]) -> None:
    """Names that are one tensor in the model must be one in the file, or the last one read would win."""
    first: dict[int, str] = {}
    for name, tensor in state.items():
        twin = first.setdefault(id(tensor), name)
        if saved.ties.get(name, name) != saved.ties.get(twin, twin):
            raise FileError(
                f"{saved.path} is of another model: {name!r} and {twin!r} are tied in the model, not in the file"
            )


def _check_tied_biases(saved: Saved, state: Mapping[str, object], places: Sequence[Place]) -> None:
    """A bias stands in the file once for each layer: where the model ties it to others, all must be of one value."""
    first: dict[int, tuple[str, Tensor]] = {}
    for place in places:
        own, bias = place.layer.module._parameters.get("bias"), place.saved.bias
        if own is not None and bias is not None:
            _check_tied(saved, f"{place.layer.name}.bias", bias, *first.setdefault(id(own), (place.layer.name, bias)))
    for name, tensor in state.items():
        if id(tensor) in first:
            _check_tied(saved, name, value_of(saved, name), *first[id(tensor)])


def _check_tied(saved: Saved, name: str, value: Tensor, layer: str, bias: Tensor) -> None:
    if not torch.equal(value.view(torch.uint8), bias.view(torch.uint8)):
        raise FileError(
            f"{saved.path} is of another model: {name!r} and the bias of layer {layer!r} are tied in the model, not in "
            "the file"
        )
