"""Which layers a name, a glob or a callable means, and the parameter that a layer's weight is in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from ajour.importers.torch_prune import is_prune_hook
from ajour.layers import Layer, is_conv1d, is_converted
from ajour.terms.errors import ConversionError

LayerChoice = str | Sequence[str] | Callable[[str, nn.Module], bool]

_PLACES = ("weight_orig", "parametrizations.weight.original", "weight")


def match_layers(found: list[Layer], layers: LayerChoice | None) -> list[Layer]:
    """Those of `found` that are meant, whatever can be done with them; without `layers` all of them.

    Raises ConversionError if a name or glob matches nothing.
    """
    layers = [layers] if isinstance(layers, str) else layers
    if layers is None:
        return found
    if callable(layers):
        return [layer for layer in found if layers(layer.name, layer.module)]
    for text in layers:
        if not any(fnmatchcase(layer.name, text) for layer in found):
            names = ", ".join(layer.name for layer in found[:8])
            raise ConversionError(f"no layer matches {text!r}; the model's layers are {names}, ...")
    return [layer for layer in found if any(fnmatchcase(layer.name, text) for text in layers)]


def choose_layers(found: list[Layer], layers: LayerChoice | None) -> list[Layer]:
    """Those of `found` that are meant: without `layers` all that can be converted.

    layers: a name or glob ("encoder.*"), several of them, or a callable (name, module) -> bool. What can't be converted
    is skipped, unless it was named in full. Raises ConversionError for such a name, for a converted layer, and if a
    name or glob matches nothing.
    """
    layers = [layers] if isinstance(layers, str) else layers
    chosen = match_layers(found, layers)
    named = set() if layers is None or callable(layers) else set(layers)
    for layer in chosen:
        if layer.reason is not None and layer.name in named:
            raise ConversionError(f"layer {layer.name!r} can't be pruned: {layer.reason}")
        if is_converted(layer.module):
            raise ConversionError(
                f"layer {layer.name!r} is converted already; call ajour.revert(model), prune, convert"
            )
    return [layer for layer in chosen if layer.reason is None]


def stored_parameter(layer: Layer) -> nn.Parameter:
    """The parameter that the layer's forward starts from; masks of other tools are applied to it later."""
    held = dict(layer.module.named_parameters())
    own = () if isinstance(layer.module, nn.Linear) or is_conv1d(layer.module) else (layer.name.rpartition(".")[2],)
    return next(held[place] for place in (*own, *_PLACES) if place in held)


@torch.no_grad()
def write_weight(layer: Layer, w: Tensor) -> None:
    """w: [n, k] into the tensor that the forward starts from; masks of other tools stay, as w is zero under them."""
    module = layer.module
    stored_parameter(layer).copy_(w.t() if is_conv1d(module) else w)
    for hook in module._forward_pre_hooks.values():
        if is_prune_hook(hook):
            hook(module, ())  # refreshes the plain attribute `weight`, which code may read before the next forward
