"""OpenLTH: float buffers `mask_a___b___weight` (1 is kept) at the root of a PrunedModel, for `model.a.b.weight`.

It multiplies parameters by them before each forward, so what is stored between two steps may not be masked.
`mask.pth` holds the same masks as integers by the parameters' names; see `mapping.py`.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from ajour.importers.tool import Place, Shapes, Tool, masked, same

NAME = "OpenLTH"
_START = "mask_"
_DOT = "___"


def _places(shapes: Shapes) -> Iterator[Place]:
    encoded: dict[str, list[str]] = {}  # a name with underscores beside its dots can't be decoded, only encoded
    for name in shapes:
        encoded.setdefault(name.replace(".", _DOT), []).append(name)
    for mask, shape in shapes.items():
        path, dot, leaf = mask.rpartition(".")
        if not leaf.startswith(_START):
            continue
        for prefix in (f"{path}{dot}model.", f"{path}{dot}"):
            names = encoded.get(prefix.replace(".", _DOT) + leaf.removeprefix(_START), ())
            fitting = [name for name in names if name.startswith(prefix) and shapes[name] == shape]
            if len(fitting) == 1:
                yield Place(fitting[0], fitting[0], (mask,))
                break


def model_masks(model: nn.Module) -> dict[str, Tensor]:
    """The masks by the full name of the parameter, from any PrunedModel in a live model.

    Of another class, whose forward may leave them be, those that the parameter obeys already.
    """
    masks = {}
    for path, module in model.named_modules():
        inner = module._modules.get("model")
        if inner is None or not any(name.startswith(_START) for name in module._buffers):
            continue
        applies = any(kind.__name__ == "PrunedModel" for kind in type(module).__mro__)
        for name, parameter in inner.named_parameters():
            mask = module._buffers.get(_START + name.replace(".", _DOT))
            if mask is not None and (applies or _obeys(parameter, mask)):
                masks[f"{path}.model.{name}" if path else f"model.{name}"] = mask
    return masks


def _obeys(parameter: Tensor, mask: Tensor) -> bool:
    return parameter.shape == mask.shape and same(parameter.detach(), masked(parameter, mask))


def _is_mask(name: str, shapes: Shapes) -> bool:
    leaf = name.rpartition(".")[2]
    return leaf.startswith(_START) and _DOT in leaf


TOOL = Tool(NAME, _places, lambda module: None, shapes_a_weight=_is_mask)
