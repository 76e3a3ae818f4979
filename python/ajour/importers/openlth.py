"""OpenLTH: float buffers `mask_a___b___weight` (1 is kept) at the root of a PrunedModel, for `model.a.b.weight`.

It multiplies parameters by them before each forward, so what is stored between two steps may not be masked.
`mask.pth` holds the same masks as integers by the parameters' names; see `mapping.py`.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from ajour.importers.tool import Place, Shapes, Tool

NAME = "OpenLTH"
_START = "mask_"
_DOT = "___"


def _places(shapes: Shapes) -> Iterator[Place]:
    for mask, shape in shapes.items():
        path, dot, leaf = mask.rpartition(".")
        if not leaf.startswith(_START):
            continue
        parameter = leaf.removeprefix(_START).replace(_DOT, ".")
        for name in (f"{path}{dot}model.{parameter}", f"{path}{dot}{parameter}"):
            if shapes.get(name) == shape:
                yield Place(name, name, (mask,))
                break


def model_masks(model: nn.Module) -> dict[str, Tensor]:
    """The masks by the full name of the parameter, from any PrunedModel in a live model."""
    masks = {}
    for path, module in model.named_modules():
        inner = module._modules.get("model")
        if inner is None or not any(name.startswith(_START) for name in module._buffers):
            continue
        held = dict(inner.named_parameters())
        for name, mask in module._buffers.items():
            parameter = name.removeprefix(_START).replace(_DOT, ".")
            if mask is not None and name.startswith(_START) and parameter in held:
                masks[f"{path}.model.{parameter}" if path else f"model.{parameter}"] = mask
    return masks


TOOL = Tool(NAME, _places, lambda module: None)
