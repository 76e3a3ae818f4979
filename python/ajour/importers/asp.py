"""NVIDIA ASP (Apex): weights already multiplied in place, with a bool `__weight_mma_mask` (1 is kept) beside them.

`__weight_mma_pruned_p`, where it stands, keeps the values that were pruned, to undo it.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from ajour.importers.tool import Found, Place, Shapes, Tool, held_beside

NAME = "Apex ASP"
MASK = "__weight_mma_mask"


def _places(shapes: Shapes) -> Iterator[Place]:
    for mask, shape in shapes.items():
        path, dot, leaf = mask.rpartition(".")
        stored = leaf.removeprefix("__").removesuffix("_mma_mask")
        weight = f"{path}{dot}{stored}"
        if leaf == f"__{stored}_mma_mask" and shapes.get(weight) == shape:
            pruned = f"{path}{dot}__{stored}_mma_pruned_p"
            yield Place(weight, weight, (mask,), beside=(pruned,) if pruned in shapes else ())


def _on_module(module: nn.Module) -> Found | None:
    return held_beside(module, MASK, NAME)


def _is_mask(name: str, shapes: Shapes) -> bool:
    leaf = name.rpartition(".")[2]
    return leaf.startswith("__") and leaf.endswith("_mma_mask")


TOOL = Tool(NAME, _places, _on_module, frozenset((MASK, "__weight_mma_pruned_p")), _is_mask)
