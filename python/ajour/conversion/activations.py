"""Activations as models hold them, and as an op names them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

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
    """Stands where an activation stood that its layer now applies itself; remembers it."""

    def __init__(self, activation: nn.Module | Callable[..., Any]) -> None:
        super().__init__()
        self.original = (activation,)  # in a tuple, so that it is no part of the model

    def extra_repr(self) -> str:
        """The activation that was folded."""
        return f"folded {self.original[0]!r}"


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


def has_hooks(module: nn.Module) -> bool:
    """Whether somebody listens at this module, or replaced its forward."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(hooks) or "forward" in vars(module)
