"""NNCF: raw weights, and bool masks (1 is kept) in a storage of hooks at the model's root, by the weights' full names.

Keys are `__nncf_hooks.post_hooks.encoder:fc:weight__0.0.binary_mask` for the parameter `encoder.fc.weight`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TypeVar

from torch import Tensor, nn

from ajour.importers.tool import Place, Shapes, Tool
from ajour.terms.errors import FileError

NAME = "NNCF"
STORAGE = "__nncf_hooks"
T = TypeVar("T")


def _places(shapes: Shapes) -> Iterator[Place]:
    for name, mask in _by_parameter({key: key for key in shapes}).items():
        prefix = mask.partition(STORAGE)[0]
        if shapes.get(prefix + name) == shapes[mask]:
            yield Place(prefix + name, prefix + name, (mask,))


def model_masks(model: nn.Module) -> dict[str, Tensor]:
    """The masks by the full name of the parameter, from the storage that a live model carries."""
    storage = model._modules.get(STORAGE)
    return {} if storage is None else _by_parameter(dict(storage.named_buffers()))


def refuse_hooks(names: Iterable[str], where: str) -> None:
    """Raises FileError for a hook that is no mask by bits: without it the weights are not what the model runs with."""
    for name in names:
        if f"{STORAGE}." in name:
            raise FileError(
                f"{where}: {name!r} belongs to a hook of NNCF's that ajour does not know; call nncf.strip with "
                "StripFormat.IN_PLACE before saving"
            )


def _by_parameter(tensors: Mapping[str, T]) -> dict[str, T]:
    masks = {}
    for key, tensor in tensors.items():
        if key.endswith(".binary_mask") and "post_hooks." in key:
            place = key.split("post_hooks.")[1].split(".")[0]
            masks[place.rpartition("__")[0].replace(":", ".")] = tensor
    return masks


TOOL = Tool(NAME, _places, lambda module: None)
