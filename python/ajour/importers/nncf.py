"""NNCF: raw weights, and bool masks (1 is kept) in a storage of hooks at the model's root, by the weights' full names.

Keys are `__nncf_hooks.post_hooks.encoder:fc:weight__0.0.binary_mask` for the parameter `encoder.fc.weight`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from torch import Tensor, nn

from ajour.importers.tool import Place, Shapes, Tool
from ajour.terms.errors import FileError

NAME = "NNCF"
STORAGE = "__nncf_hooks"


def _places(shapes: Shapes) -> Iterator[Place]:
    for mask in shapes:
        prefix, _, place = mask.partition(f"{STORAGE}.post_hooks.")
        name = prefix + _parameter_of(place.split(".")[0])
        if mask.endswith(".0.binary_mask") and shapes.get(name) == shapes[mask]:
            yield Place(name, name, (mask,))


def model_masks(model: nn.Module) -> dict[str, Tensor | None]:
    """The masks of a live model by the full name of the parameter; None for a hook that is no mask by bits."""
    storage = model._modules.get(STORAGE)
    hooks = None if storage is None else storage._modules.get("post_hooks")
    found: dict[str, Tensor | None] = {}
    for place, hooked in ({} if hooks is None else hooks._modules).items():
        steps = [] if hooked is None else list(hooked._modules.values())
        masks = [step._buffers.get("binary_mask") for step in steps if step is not None]
        if masks:
            found[_parameter_of(place)] = masks[0] if len(masks) == 1 else None
    return found


def refuse_hooks(names: Iterable[str], where: str) -> None:
    """Raises FileError for a hook that is no mask by bits: without it the weights are not what the model runs with."""
    for name in names:
        if f"{STORAGE}." in name:
            raise FileError(
                f"{where}: {name!r} belongs to a hook of NNCF's that ajour does not know; call nncf.strip with "
                "StripFormat.IN_PLACE before saving"
            )


def _parameter_of(place: str) -> str:
    """`encoder:fc:weight__0` -> `encoder.fc.weight`."""
    return place.rpartition("__")[0].replace(":", ".")


TOOL = Tool(NAME, _places, lambda module: None)
