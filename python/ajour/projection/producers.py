"""Which layer provably feeds another one alone, feature by feature: its rows can stand in another order for free."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from ajour.conversion.activations import activation_name, has_hooks
from ajour.conversion.fusion import runs_whole
from ajour.conversion.origin import is_plain
from ajour.conversion.seclusion import secluded
from ajour.layers import find_layers

_FEED_FORWARD = (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)  # linear2(dropout(activation(linear1(x))))


def find_producers(model: nn.Module) -> dict[str, str]:
    """Layer name -> the name of the layer whose out features are its in features, with only activations between.

    In an nn.Sequential that is only called, and in torch's transformer layers; both of torch's own class, and in a
    secluded model: every class that is not torch's only calls its own children, and no attribute leads to a module that
    is registered elsewhere. Not where a part stands in the model twice. Elsewhere a gather is right.
    """
    if not secluded(model):
        return {}
    plain = {layer.name for layer in find_layers(model) if layer.reason is None and is_plain(layer)}
    places = Counter(id(child) for module in model.modules() for child in module._modules.values())
    storages = Counter(_memory(p) for _, p in _tensors(model))
    found = {}
    for path, module in model.named_modules():
        for first, second in _pairs(model, path, module):
            names = [f"{path}.{name}" if path else name for name in (first, second)]
            ends = [module._modules.get(name) for name in (first, second)]
            alone = all(type(end) is nn.Linear and places[id(end)] == 1 for end in ends)
            if alone and plain.issuperset(names) and all(storages[_memory(p)] == 1 for _, p in _tensors(ends[0])):
                found[names[1]] = names[0]
    return found


def _tensors(module: nn.Module | None) -> list[tuple[str, Tensor]]:
    assert module is not None
    return [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]


def _memory(tensor: Tensor) -> int:
    """What tells tensors of shared memory; each one of its own on the meta device."""
    return id(tensor) if tensor.is_meta else tensor.untyped_storage()._cdata


def _pairs(model: nn.Module, path: str, module: nn.Module) -> Iterator[tuple[str, str]]:
    if type(module) in _FEED_FORWARD:
        between = [_at(module, "activation"), _at(module, "dropout")]
        if "_ff_block" not in vars(module) and all(map(_each, between)):
            yield "linear1", "linear2"
    elif type(module) is nn.Sequential and runs_whole(model, path, frozenset()):
        last: str | None = None
        for name, child in module._modules.items():
            if last is not None and not _each(child):
                yield last, name
            if not _each(child):
                last = name


def _at(module: nn.Module, place: str) -> Any:
    return module._modules[place] if place in module._modules else vars(module).get(place)


def _each(module: Any) -> bool:
    """Whether it treats every feature by itself and all of them alike."""
    if isinstance(module, nn.Module) and has_hooks(module):
        return False
    return activation_name(module) is not None or type(module) in (nn.Dropout, nn.Identity, nn.Tanh, nn.Sigmoid)
