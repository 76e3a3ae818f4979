"""Masks by name: OpenLTH's `mask.pth` (0 or 1 as integers, 1 is kept), any mapping, or a key that the caller spells.

`mask_key` is such a key with `{name}` in it, which stands for the weight's name without ".weight": with
"{name}.kept" the mask of `encoder.fc.weight` is looked for under `encoder.fc.kept`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial

import torch
from torch import Tensor

from ajour.importers.change import Change, check_base
from ajour.importers.tool import PART, Place, Shapes, check_mask, masked
from ajour.terms.errors import FileError

NAME = "masks by name"
_SLOT = "{name}"


def check_key(mask_key: str) -> None:
    """Raises FileError unless the key says where the name stands."""
    if mask_key.count(_SLOT) != 1:
        raise FileError(f"mask_key={mask_key!r} should hold {_SLOT} once, as in '{_SLOT}.mask'")


def places(shapes: Shapes, mask_key: str) -> Iterator[Place]:
    """The weights that have a mask under the caller's key."""
    for weight, shape in shapes.items():
        mask = mask_key.replace(_SLOT, weight.removesuffix(".weight"))
        if mask in shapes and mask != weight:
            if shapes[mask] != shape:
                raise FileError(f"{mask} has the shape {shapes[mask]}, {weight} {shape}; a mask has its weight's")
            yield Place(weight, weight, (mask,))


def are_masks(tensors: Mapping[str, Tensor], shapes: Shapes) -> bool:
    """Whether all that it holds are zeros and ones, and one of them is of a kind that only a mask is.

    That is bool or whole numbers throughout, or a matrix: a new norm's vectors are zeros and ones in floats, too.
    """
    whole = True
    for name in shapes:
        mask = tensors[name]
        if mask.is_complex() or (mask.dtype.itemsize == 1 and mask.is_floating_point()):
            return False
        if not all(bool(((part == 0) | (part == 1)).all()) for part in mask.reshape(-1).split(PART)):
            return False
        whole = whole and not mask.is_floating_point()
    return bool(shapes) and (whole or any(len(shape) > 1 for shape in shapes.values()))


def changes(tensors: Mapping[str, Tensor], shapes: Shapes) -> Iterator[Change]:
    """One for each mask, by the name of a parameter or of its layer."""
    for name, shape in shapes.items():
        read = partial(tensors.__getitem__, name)
        apply = partial(_apply, name, tensors)
        yield Change(name, (name, f"{name}.weight"), NAME, "mask", apply, read, torch.Size(shape).numel())


def keyed_changes(tensors: Mapping[str, Tensor], shapes: Shapes, mask_key: str) -> Iterator[Change]:
    """One for each mask under the caller's key, the weights being the model's."""
    start, _, end = mask_key.partition(_SLOT)
    for mask in shapes:
        if mask.startswith(start) and mask.endswith(end) and len(mask) > len(start) + len(end):
            name = mask[len(start) : len(mask) - len(end)]
            read, apply = partial(tensors.__getitem__, mask), partial(_apply, mask, tensors)
            yield Change(name, (f"{name}.weight", name), NAME, "mask", apply, read, torch.Size(shapes[mask]).numel())


def _apply(name: str, tensors: Mapping[str, Tensor], base: Tensor) -> Tensor:
    mask = tensors[name]
    check_base(base, tuple(mask.shape), name)
    return masked(base.cpu(), check_mask(mask, name, "the model's weight"))
