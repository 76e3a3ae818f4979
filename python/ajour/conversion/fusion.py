"""Which activations a layer can take over: those that provably follow it and that nobody else sees."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from torch import nn

from ajour.conversion.activations import Folded, activation_name, has_hooks
from ajour.conversion.reaching import reached
from ajour.conversion.seclusion import secluded
from ajour.conversion.source import usage
from ajour.layers import is_conv1d, is_converted
from ajour.nn.permuted import Permuted


@dataclass(frozen=True)
class Fusion:
    """`container.place` holds the activation that `container.layer` takes over; `activation` is its name."""

    container: nn.Module
    layer: str
    place: str
    activation: str

    def fold(self) -> None:
        """Puts a Folded in the activation's place."""
        if not self._is_folded():
            activation = _at(self.container, self.place)
            _put(self.container, self.place, Folded(activation, self.container, self.layer, self.place))

    def unfold(self) -> None:
        """Puts the activation back, if it was folded."""
        if self._is_folded():
            unfold(self.container, self.place)

    def _is_folded(self) -> bool:
        return isinstance(self.container._modules.get(self.place), Folded)


def find_fusions(model: nn.Module) -> dict[str, Fusion]:
    """Layer name -> the activation that it can take over.

    In an nn.Sequential that runs as a whole, and in any module whose source says `self.activation(self.layer(x))` and
    uses both nowhere else, if the model is secluded: whoever else sees a layer's output would see the activated one.
    Classes of transformers are taken to reach into each other by attribute alone. Not where the activation
    stands in the model twice.
    """
    if not secluded(model, ("transformers",)):
        return {}
    seen = frozenset(name for kind in {type(module) for module in model.modules()} for name in reached(kind))
    places = Counter(id(child) for module in model.modules() for child in module._modules.values())
    found = {}
    for path, module in model.named_modules():
        for layer, place in _pairs(model, path, module, seen):
            activation = _at(module, place)
            name, child = activation_name(activation), module._modules.get(layer)
            inside = f"{layer}.layer" if isinstance(child, Permuted) else layer
            linear = child.layer if isinstance(child, Permuted) else child
            alone = not isinstance(activation, nn.Module) or (places[id(activation)] == 1 and not has_hooks(activation))
            if name is not None and alone and _is_linear(linear):
                found[f"{path}.{inside}" if path else inside] = Fusion(module, layer, place, name)
    return found


def unfold(container: nn.Module, place: str) -> None:
    """Puts back what stood in `place` before it was folded; does nothing elsewhere."""
    folded = container._modules.get(place)
    if isinstance(folded, Folded):
        _put(container, place, folded.original[0])


def _pairs(model: nn.Module, path: str, module: nn.Module, seen: frozenset[str]) -> list[tuple[str, str]]:
    if isinstance(module, nn.Sequential):
        names = list(module._modules)
        return list(pairwise(names)) if runs_whole(model, path, seen) else []
    if isinstance(module, (nn.ModuleList, nn.ModuleDict)):
        return []
    pairs = [(layer, place) for layer, place, method in usage(type(module)).pairs if method not in vars(module)]
    return [pair for pair in pairs if seen.isdisjoint(pair)]


def runs_whole(model: nn.Module, path: str, seen: frozenset[str]) -> bool:
    """Whether the Sequential at `path` is only called, never indexed or walked, as far as the model's source shows."""
    module = model.get_submodule(path)
    if type(module).forward is not nn.Sequential.forward or "forward" in vars(module):
        return False
    if not path:
        return True
    above, _, leaf = path.rpartition(".")
    container = model.get_submodule(above)
    if isinstance(container, nn.Sequential):
        return runs_whole(model, above, seen)
    return leaf in usage(type(container)).called and leaf not in seen


def _is_linear(module: nn.Module | None) -> bool:
    return module is not None and (isinstance(module, nn.Linear) or is_conv1d(module) or is_converted(module))


def _at(container: nn.Module, place: str) -> Any:
    return container._modules[place] if place in container._modules else vars(container).get(place)


def _put(container: nn.Module, place: str, thing: Any) -> None:
    if isinstance(thing, nn.Module):
        container._modules[place] = thing
        vars(container).pop(place, None)
    else:
        vars(container)[place] = thing
        container._modules.pop(place, None)
