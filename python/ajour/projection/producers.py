"""Which layer provably feeds another one alone, feature by feature: its rows can stand in another order for free."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from torch import nn

from ajour.conversion.activations import activation_name, has_hooks
from ajour.conversion.fusion import runs_whole
from ajour.conversion.origin import is_plain
from ajour.conversion.source import reached, usage
from ajour.layers import find_layers

_FEED_FORWARD = (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)  # linear2(dropout(activation(linear1(x))))


def find_producers(model: nn.Module) -> dict[str, str]:
    """Layer name -> the name of the layer whose out features are its in features, with only activations between.

    In an nn.Sequential that runs as a whole, in torch's transformer layers, and in any module whose source says
    `self.b(self.activation(self.a(x)))` and uses them nowhere else, if no other class of the model reads something of
    either name from another module. Not where a hook sits between, or a part stands in the model twice.
    """
    plain = {layer.name for layer in find_layers(model) if layer.reason is None and is_plain(layer)}
    seen = frozenset(name for kind in {type(module) for module in model.modules()} for name in reached(kind))
    places = Counter(id(child) for module in model.modules() for child in module._modules.values())
    biases = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    found = {}
    for path, module in model.named_modules():
        for first, second in _pairs(model, path, module, seen):
            names = [f"{path}.{name}" if path else name for name in (first, second)]
            ends = [module._modules.get(name) for name in (first, second)]
            alone = all(end is not None and places[id(end)] == 1 for end in ends)
            bias = getattr(ends[0], "bias", None)
            if alone and plain.issuperset(names) and (bias is None or biases[id(bias)] == 1):
                found[names[1]] = names[0]
    return found


def _pairs(model: nn.Module, path: str, module: nn.Module, seen: frozenset[str]) -> Iterator[tuple[str, str]]:
    if type(module) in _FEED_FORWARD:
        between = [_at(module, "activation"), _at(module, "dropout")]
        if "_ff_block" not in vars(module) and seen.isdisjoint(("linear1", "linear2")) and all(map(_each, between)):
            yield "linear1", "linear2"
    elif isinstance(module, nn.Sequential) and runs_whole(model, path, seen):
        last: str | None = None
        for name, child in module._modules.items():
            if last is not None and not _each(child):
                yield last, name
            if not _each(child):
                last = name
    elif not isinstance(module, (nn.ModuleList, nn.ModuleDict, nn.Sequential)):
        yield from (pair for pair in _written(module) if seen.isdisjoint(pair))


def _written(module: nn.Module) -> Iterator[tuple[str, str]]:
    """Children of which the source passes one's output to the other, through nothing but activations."""
    following = {first: second for first, second, method in usage(type(module)).pairs if method not in vars(module)}
    for first, second in following.items():
        while second in following and _each(_at(module, second)):
            second = following[second]
        yield first, second


def _at(module: nn.Module, place: str) -> Any:
    return module._modules[place] if place in module._modules else vars(module).get(place)


def _each(module: Any) -> bool:
    """Whether it treats every feature by itself and all of them alike."""
    if isinstance(module, nn.Module) and has_hooks(module):
        return False
    return activation_name(module) is not None or type(module) in (nn.Dropout, nn.Identity, nn.Tanh, nn.Sigmoid)
