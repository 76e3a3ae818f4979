"""What an importer of one tool says: where its weight and its masks stand, in a file and on a live module."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ajour.terms.errors import FileError

PART = 2**20  # elements looked at together, so that little memory is needed beside the tensors themselves
Shapes = Mapping[str, tuple[int, ...]]  # of a file's tensors by name


@dataclass(frozen=True)
class Place:
    """A weight in a file.

    name: as the finished model's state_dict has it. weight: its key in the file. masks: the keys of the masks to
    multiply it by. beside: keys that mean nothing once the masks are applied. note: what a reader must know.
    """

    name: str
    weight: str
    masks: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()
    note: str | None = None


@dataclass(frozen=True)
class Found:
    """What stands on one live module.

    weight: what the forward multiplies by, masks applied, in the module's own orientation; None if that is unknown.
    source: the tool whose mask shaped it, or None. reason: why the layer can't be converted, or None.
    """

    weight: Tensor | None
    source: str | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Tool:
    """places: what of a file's names is this tool's. on_module: the same for a module; None where it has left nothing.

    parts: names of parameters, buffers and children that it leaves on a layer beside `weight` and `bias`.
    shapes_a_weight: whether a name in a file is one under which this tool keeps what shapes a weight.
    """

    name: str
    places: Callable[[Shapes], Iterable[Place]]
    on_module: Callable[[nn.Module], Found | None]
    parts: frozenset[str] = frozenset()
    shapes_a_weight: Callable[[str, Shapes], bool] = lambda name, shapes: False


def masked(weight: Tensor, mask: Tensor) -> Tensor:
    """weight * mask, as the tools' forwards compute it (so Inf under the mask is their NaN)."""
    kept = mask.detach()
    # in place on a copy: a temporary as large as the tensor would leave a hole between the results
    return weight.detach().clone().mul_(kept if kept.dtype == torch.bool else kept.to(weight.dtype))


def check_mask(mask: Tensor, name: str, weight: str) -> Tensor:
    """The mask, if it has zeros and ones alone; else raises FileError."""
    parts = () if mask.dtype == torch.bool else mask.reshape(-1).split(PART)
    if mask.is_complex() or not all(bool(((part == 0) | (part == 1)).all()) for part in parts):
        raise FileError(f"{name} should hold zeros and ones, as a mask beside {weight} does")
    return mask


def same(a: Tensor, b: Tensor) -> bool:
    """Equal values, NaN equal to NaN and -0.0 to 0.0; tensors without data count as equal."""
    return a.is_meta or b.is_meta or bool(((a == b) | (a.isnan() & b.isnan())).all())


def held_beside(module: nn.Module, mask_name: str, tool: str) -> Found | None:
    """A mask beside the weight counts where the weight is zero under it, or reading `.weight` applies it (modelopt)."""
    weight = module._parameters.get("weight")
    mask = module._buffers.get(mask_name, module._parameters.get(mask_name))
    if weight is None or mask is None or mask.shape != weight.shape:
        return None
    applied = masked(weight, mask)
    seen = module.weight
    if isinstance(seen, Tensor) and same(seen.detach(), applied):
        return Found(applied, tool)
    return Found(
        weight.detach(),
        reason=f"a mask stands beside its weight ({mask_name}, as {tool} writes it), but its forward does "
        "not apply it; multiply the weight by it, or delete the mask",
    )


def pairs(shapes: Shapes, mask_leaf: str) -> Iterable[tuple[str, str]]:
    """(weight, mask) of every `P.weight` with a mask of its shape under `P.<mask_leaf>`."""
    for mask, shape in shapes.items():
        path, dot, leaf = mask.rpartition(".")
        weight = f"{path}{dot}weight"
        if leaf == mask_leaf and shapes.get(weight) == shape:
            yield weight, mask


def no_grad_call(step: nn.Module, weight: Tensor) -> Tensor:
    """What a parametrization makes of a weight."""
    with torch.no_grad():
        made: Tensor = step(weight)
    return made
