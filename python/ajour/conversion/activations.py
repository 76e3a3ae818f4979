"""Activations as models hold them, and as an op names them."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ajour.nn import SparseLinear
from ajour.nn.permuted import Permuted

_MODULES: dict[type[nn.Module], str] = {nn.ReLU: "relu", nn.SiLU: "silu"}
_FUNCTIONS: dict[Any, str] = {
    F.relu: "relu",
    F.relu_: "relu",
    torch.relu: "relu",
    torch.relu_: "relu",
    F.gelu: "gelu",
    F.silu: "silu",
}
# classes of transformers.activations by name, so that transformers need not be there
_TRANSFORMERS = {
    "GELUActivation": "gelu",
    "GELUTanh": "gelu_tanh",
    "NewGELUActivation": "gelu_tanh",
    "PytorchGELUTanh": "gelu_tanh",
    "SiLUActivation": "silu",
}


class Folded(nn.Identity):
    """Stands where an activation stood that the layer before it now applies itself; remembers it.

    It looks at that layer in each call: once another stands there that applies none, as after
    `model[0] = ajour.revert(model[0])`, it is the activation again. And once something else stands in its own place,
    the layer applies none. Neither is seen after both have moved into another container, where it passes x on, nor
    the latter while somebody holds what was replaced.
    """

    def __init__(
        self, activation: nn.Module | Callable[..., Any], container: nn.Module, layer: str, place: str
    ) -> None:
        """container: the module that holds the layer and the activation, by these names."""
        super().__init__()
        self.original = (activation,)  # in a tuple, so that it is no part of the model
        self.names = (layer, place)
        self._stand_in(container)

    def forward(self, x: Tensor) -> Tensor:
        """x, or its activation where nobody has applied it."""
        y: Tensor = self.original[0](x) if self._is_left_to_me() else x
        return y

    def extra_repr(self) -> str:
        """The activation that was folded."""
        return f"folded {self.original[0]!r}" + (", applied here again" if self._is_left_to_me() else "")

    def _is_left_to_me(self) -> bool:
        container = self._container()
        if container is None:
            return False
        if not isinstance(container, nn.Sequential):
            known = container._modules.get(self.names[1]) is self
            return known and not _activates(container._modules.get(self.names[0]))
        before = None
        for child in container._modules.values():  # their names move when one is inserted
            if child is self:
                return not _activates(before)
            before = child
        return False

    def _stand_in(self, container: nn.Module | None) -> None:
        """Holds the container weakly, as it holds this; and leaves the layer without activation when replaced."""
        self._container: Callable[[], nn.Module | None] = _nothing if container is None else weakref.ref(container)
        if container is not None:
            weakref.finalize(self, _let_go, self._container, *self.names).atexit = False

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_container": self._container()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__({name: value for name, value in state.items() if name != "_container"})  # type: ignore[no-untyped-call]
        self._stand_in(state["_container"])

    def __deepcopy__(self, memo: dict[int, Any]) -> Folded:
        """In the copy of its container if that is copied too, else beside the original."""
        container = self._container()
        twin = type(self).__new__(type(self))
        memo[id(self)] = twin
        state = {name: copy.deepcopy(value, memo) for name, value in vars(self).items() if name != "_container"}
        twin.__setstate__({**state, "_container": memo.get(id(container), container)})
        return twin


def _nothing() -> None:
    """What a weak reference to a module that is gone gives."""


def _activates(module: nn.Module | None) -> bool:
    """Whether it is, or holds, a converted layer with an activation."""
    if isinstance(module, SparseLinear):
        return module.activation != "none"
    return module is not None and any(_activates(child) for child in module._modules.values())


def _let_go(container: Callable[[], nn.Module | None], layer: str, place: str) -> None:
    """Called when a Folded is gone: if another module stands in its place, the layer must not apply its activation."""
    module = container()
    if module is None or isinstance(module._modules.get(place), Folded):
        return
    child = module._modules.get(layer)
    linear = child.layer if isinstance(child, Permuted) else child
    if isinstance(linear, SparseLinear):
        linear.activation = "none"


def activation_name(activation: object) -> str | None:
    """The name that an op knows this module or function by; None for any other."""
    if not isinstance(activation, nn.Module):
        return _FUNCTIONS.get(activation) if callable(activation) else None
    kind = type(activation)
    if kind is nn.GELU:
        return {"none": "gelu", "tanh": "gelu_tanh"}[activation.approximate]  # type: ignore[index]
    if kind.__module__ == "transformers.activations":
        return _TRANSFORMERS.get(kind.__name__)
    return _MODULES.get(kind)


def activation_module(name: str) -> nn.Module:
    """The module for the name of an op's activation."""
    return {"relu": nn.ReLU(), "gelu": nn.GELU(), "gelu_tanh": nn.GELU("tanh"), "silu": nn.SiLU()}[name]


def has_hooks(module: nn.Module) -> bool:
    """Whether somebody listens at this module, or replaced its forward."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(hooks) or "forward" in vars(module)
