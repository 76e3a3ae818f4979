"""torch.nn.utils.prune: `X_orig` and `X_mask` (1 is kept) beside a hook that multiplies them before each forward."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn
from torch.nn.utils.prune import BasePruningMethod

from ajour.importers.tool import Found, Place, Shapes, Tool, masked

NAME = "torch.nn.utils.prune"
_LOST = "the file holds weight_orig without its weight_mask, so this is the weight before pruning"


def _places(shapes: Shapes) -> Iterator[Place]:
    for key, shape in shapes.items():
        name = key.removesuffix("_orig")
        if name != key and name not in shapes:
            known = shapes.get(f"{name}_mask") == shape
            lost = None if known or not name.endswith("weight") else _LOST
            yield Place(name, key, (f"{name}_mask",) if known else (), note=lost)


def _on_module(module: nn.Module) -> Found | None:
    if "weight_orig" not in module._parameters:
        return None
    weight = read_pruned(module, "weight_orig")
    if weight is None:
        return Found(None, reason="its weight_orig stands without the mask and the hook of torch.nn.utils.prune")
    return Found(weight, NAME)


def read_pruned(module: nn.Module, stored: str) -> Tensor | None:
    """The parameter `stored` ("weight_orig", "weight_hh_l0_orig", ...) under the mask that torch's hook applies.

    None where no such hook and mask stand.
    """
    name = stored.removesuffix("_orig")
    hooks = [hook for hook in module._forward_pre_hooks.values() if getattr(hook, "_tensor_name", "") == name]
    weight, mask = module._parameters.get(stored), module._buffers.get(f"{name}_mask")
    if name == stored or weight is None or mask is None or len(hooks) != 1 or not is_prune_hook(hooks[0]):
        return None
    return masked(weight, mask)


def is_prune_hook(hook: object) -> bool:
    """Whether a forward pre-hook multiplies by its mask as torch.nn.utils.prune does, which reading a weight includes.

    A method may choose its mask as it likes; one that applies it in another way computes something else.
    """
    kind = type(hook)
    return (
        issubclass(kind, BasePruningMethod)
        and kind.__call__ is BasePruningMethod.__call__
        and kind.apply_mask is BasePruningMethod.apply_mask
        and "apply_mask" not in vars(hook)
    )


def _is_mask(name: str, shapes: Shapes) -> bool:
    return name.endswith("_mask") and f"{name.removesuffix('_mask')}_orig" in shapes


TOOL = Tool(NAME, _places, _on_module, frozenset(("weight_orig", "weight_mask", "bias_orig", "bias_mask")), _is_mask)
