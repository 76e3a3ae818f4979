"""Live models: the weight that a module's forward really multiplies by, whichever tool's mask it carries."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from ajour.importers import asp, maskllm, modelopt, nncf, openlth, parametrization, plain_zeros, torch_prune
from ajour.importers.tool import Found, masked

TOOLS = (torch_prune.TOOL, parametrization.TOOL, modelopt.TOOL, asp.TOOL, maskllm.TOOL, nncf.TOOL, openlth.TOOL)
PARTS = frozenset(part for tool in TOOLS for part in tool.parts)  # what tools leave on a layer


@dataclass(frozen=True)
class Rooted:
    """What a tool keeps for a weight at the model's root; mask: None where it does something else than mask."""

    tool: str
    mask: Tensor | None


def model_masks(model: nn.Module) -> dict[str, Rooted]:
    """By the full name of the parameter."""
    found = {name: Rooted(nncf.NAME, mask) for name, mask in nncf.model_masks(model).items()}
    return found | {name: Rooted(openlth.NAME, mask) for name, mask in openlth.model_masks(model).items()}


def read_weight(module: nn.Module, rooted: Rooted | None = None) -> Found:
    """The finalised weight of a linear layer or a convolution; the module is left as it is.

    rooted: of this weight, from `model_masks`.
    """
    weight = module._parameters.get("weight")
    if rooted is not None and weight is not None:
        if rooted.mask is None or rooted.mask.shape != weight.shape:
            return Found(None, reason=f"a hook of {rooted.tool}'s makes its weight; strip the model by its means")
        return Found(masked(weight, rooted.mask), rooted.tool)
    for each in TOOLS:
        found = each.on_module(module)
        if found is not None:
            return found
    return plain_zeros.on_module(module)


def read_bias(module: nn.Module) -> Tensor | None:
    """The bias, its mask applied where torch.nn.utils.prune pruned it."""
    stored, mask = module._parameters.get("bias_orig"), module._buffers.get("bias_mask")
    if stored is not None and mask is not None:
        return masked(stored, mask)
    bias = getattr(module, "bias", None)
    return bias.detach() if isinstance(bias, Tensor) else None
