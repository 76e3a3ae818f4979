"""NVIDIA modelopt: a raw weight beside `_weight_mask` (1 is kept), multiplied whenever the live `.weight` is read.

Its state_dict holds the weight as it was before pruning, so reading `X.weight` of a file alone gives the wrong model.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from ajour.importers.tool import Found, Place, Shapes, Tool, held_beside, pairs

NAME = "modelopt"
MASK = "_weight_mask"


def _places(shapes: Shapes) -> Iterator[Place]:
    for weight, mask in pairs(shapes, MASK):
        yield Place(weight, weight, (mask,))


def _on_module(module: nn.Module) -> Found | None:
    return held_beside(module, MASK, NAME)


def is_sparse_class(kind: type, module: nn.Module) -> bool:
    """Whether a class of a module's bases is modelopt's own, there for the mask that `_on_module` applies."""
    return kind.__module__.partition(".")[0] == NAME and MASK in module._buffers


def _is_mask(name: str, shapes: Shapes) -> bool:
    return name.rpartition(".")[2] == MASK


TOOL = Tool(NAME, _places, _on_module, frozenset((MASK,)), _is_mask)
