"""MaskLLM: a `mask` (1 is kept) beside `weight`, as its Megatron checkpoints hold them."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from ajour.importers.tool import Found, Place, Shapes, Tool, held_beside, pairs

NAME = "MaskLLM"
MASK = "mask"


def _places(shapes: Shapes) -> Iterator[Place]:
    for weight, mask in pairs(shapes, MASK):
        yield Place(weight, weight, (mask,))


def _on_module(module: nn.Module) -> Found | None:
    return held_beside(module, MASK, NAME)


def _is_mask(name: str, shapes: Shapes) -> bool:
    """Other modules have a `mask`, too, an attention for one; this one stands beside a weight."""
    path, dot, leaf = name.rpartition(".")
    return leaf == MASK and f"{path}{dot}weight" in shapes


TOOL = Tool(NAME, _places, _on_module, frozenset((MASK,)), _is_mask)
