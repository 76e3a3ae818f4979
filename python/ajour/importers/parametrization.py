"""Masks as parametrizations: torch.nn.utils.parametrize, and the sparsifiers of torch.ao.pruning and torchao.

Before `squash_mask` a weight is `parametrizations.weight.original` under one mask or several; afterwards it holds plain
zeros. A sparsifier's mask is no part of its state_dict, so a file saved before squash_mask has lost it.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count, takewhile

from torch import Tensor, nn

from ajour.importers.tool import Found, Place, Shapes, Tool, masked, no_grad_call, same

NAME = "parametrization"
_REMOVE = "remove it with torch.nn.utils.parametrize.remove_parametrizations"
_LOST = (
    "a parametrization's mask is not in the file, so this is the weight before pruning; call the sparsifier's "
    "squash_mask() (or parametrize.remove_parametrizations) before saving"
)


def _places(shapes: Shapes) -> Iterator[Place]:
    for key in shapes:
        chain = key.removesuffix(".original")
        path, parametrized, leaf = chain.rpartition("parametrizations.")
        if chain != key and parametrized and "." not in leaf:
            keys = (f"{chain}.{step}.mask" for step in count())
            masks = tuple(takewhile(shapes.__contains__, keys))
            yield Place(path + leaf, key, masks, note=None if masks or leaf == "bias" else _LOST)


def _on_module(module: nn.Module) -> Found | None:
    if not hasattr(module, "parametrizations"):
        return None
    chains = module.parametrizations
    assert isinstance(chains, nn.ModuleDict)
    others = sorted(set(chains) - {"weight"})
    if others:
        return Found(None, reason=f"a parametrization makes its {others[0]}; {_REMOVE}")
    chain = chains["weight"]
    assert isinstance(chain, nn.ModuleList)
    kinds = ", ".join(type(step).__name__ for step in chain)
    refusal = f"its weight is made by the parametrization {kinds}; {_REMOVE}"
    weight = getattr(chain, "original", None)  # weight_norm keeps original0 and original1 instead
    if not isinstance(weight, Tensor):
        return Found(None, reason=refusal)
    weight = weight.detach()
    for step in chain:
        mask = getattr(step, "mask", None)
        if not isinstance(mask, Tensor) or mask.shape != weight.shape:
            return Found(None, reason=refusal)
        applied = masked(weight, mask)
        if not same(no_grad_call(step, weight), applied):
            return Found(None, reason=refusal)
        weight = applied
    return Found(weight, NAME)


def _is_of_a_chain(name: str, shapes: Shapes) -> bool:
    """A step of another kind, or a mask behind a gap: what the chain makes of its weight is not known."""
    return "parametrizations" in name.split(".")


TOOL = Tool(NAME, _places, _on_module, frozenset(("parametrizations",)), _is_of_a_chain)
