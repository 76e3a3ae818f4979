"""Layers that a file holds with their in features in another order: wrapped alike in the skeleton."""

from __future__ import annotations

from contextlib import ExitStack

import torch
from torch import Tensor, nn

from ajour.importers.saved import Saved
from ajour.layers import find_layers
from ajour.nn import Permuted
from ajour.terms.errors import FileError

_LEAF = "ajour_order"


def wrap_permuted(saved: Saved, model: nn.Module, undo: ExitStack) -> nn.Module:
    """Puts a Permuted around each layer of the model that the file holds in one; `undo` takes them away again.

    Raises FileError for an order that is none, or a layer that the model does not have.
    """
    layers = {layer.name: layer for layer in find_layers(model)}
    for key, order in saved.tensors.items():
        path, _, leaf = key.rpartition(".")
        if leaf != _LEAF:
            continue
        if refusal := _why_no_order(order):
            raise FileError(f"{saved.path}: {key!r} is no order of in features: {refusal}")
        inside = f"{path}.layer" if path else "layer"
        if inside in layers or any(name.startswith(f"{inside}.") for name in layers):
            continue  # the skeleton is permuted, too
        layer = layers.get(path)
        if layer is None or layer.shape[-1] != len(order):
            raise FileError(
                f"{saved.path} is of another model: it holds {path or 'the model'!r} with {len(order)} in features in "
                "another order, this model has no such layer there"
            )
        wrapped = Permuted(layer.module, torch.arange(len(order), device=layer.device))
        if not path:
            return wrapped
        above, _, place = path.rpartition(".")
        held = model.get_submodule(above)._modules
        undo.callback(held.__setitem__, place, layer.module)
        held[place] = wrapped
    return model


def _why_no_order(order: Tensor) -> str | None:
    if order.dtype != torch.int64 or order.dim() != 1:
        return f"expected int64 [k], found {str(order.dtype).removeprefix('torch.')} {tuple(order.shape)}"
    if not torch.equal(order.sort().values, torch.arange(len(order))):
        return f"expected each of 0 to {len(order) - 1} once"
    return None
