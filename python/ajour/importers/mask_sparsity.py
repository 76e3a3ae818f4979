"""MaskSparsity: bool masks (True is kept) of a BatchNorm's channels, by the BatchNorm's name; no weights.

A channel is dropped by its scale and shift together: both become zero, so that nothing of it leaves the layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial

import torch
from torch import Tensor

from ajour.importers.change import Change, check_base
from ajour.importers.tool import Shapes, masked
from ajour.terms.errors import FileError

NAME = "MaskSparsity"


def is_one(tensors: Mapping[str, Tensor], shapes: Shapes) -> bool:
    """Whether all that it holds are masks of channels, by the names of modules."""
    named = bool(shapes) and not any(name.endswith((".weight", ".bias")) for name in shapes)
    flat = named and all(len(shape) == 1 for shape in shapes.values())
    return flat and all(tensors[name].dtype == torch.bool for name in shapes)


def changes(tensors: Mapping[str, Tensor], shapes: Shapes) -> Iterator[Change]:
    """Two for each BatchNorm."""
    for name, (channels,) in shapes.items():
        read = partial(tensors.__getitem__, name)
        for leaf in ("weight", "bias"):
            apply = partial(_apply, name, tensors)
            yield Change(name, (f"{name}.{leaf}",), NAME, "mask", apply, read, channels)


def _apply(name: str, tensors: Mapping[str, Tensor], base: Tensor) -> Tensor:
    kept = tensors[name]
    try:
        check_base(base, tuple(kept.shape), name)
    except FileError as error:
        raise FileError(f"{error}; a mask may be for a network that was narrowed before") from None
    return masked(base.cpu(), kept)
