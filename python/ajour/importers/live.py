"""Live models: the weight that a module's forward really multiplies by, whichever tool's mask it carries."""

from __future__ import annotations

from torch import Tensor, nn

from ajour.importers import asp, maskllm, modelopt, nncf, openlth, parametrization, torch_prune
from ajour.importers.tool import Found, masked

TOOLS = (torch_prune.TOOL, parametrization.TOOL, modelopt.TOOL, asp.TOOL, maskllm.TOOL, nncf.TOOL, openlth.TOOL)
PARTS = frozenset(part for tool in TOOLS for part in tool.parts)  # what tools leave on a layer
_NOWHERE = "it holds no parameter named weight; a hook or a wrapper makes its weight on the fly"


def model_masks(model: nn.Module) -> dict[str, tuple[Tensor, str]]:
    """(mask, tool) by the full name of the parameter, for tools that keep masks at the model's root."""
    found: dict[str, tuple[Tensor, str]] = {}
    for tool in (nncf, openlth):
        found |= {name: (mask, tool.NAME) for name, mask in tool.model_masks(model).items()}
    return found


def read_weight(module: nn.Module, rooted: tuple[Tensor, str] | None = None) -> Found:
    """The finalised weight of a linear layer or a convolution; the module is left as it is.

    rooted: of this weight, from `model_masks`.
    """
    weight = module._parameters.get("weight")
    if rooted is not None and weight is not None:
        mask, tool = rooted
        return Found(masked(weight, mask), tool) if mask.shape == weight.shape else Found(weight.detach())
    for each in TOOLS:
        found = each.on_module(module)
        if found is not None:
            return found
    return Found(None, reason=_NOWHERE) if weight is None else Found(weight.detach())


def read_bias(module: nn.Module) -> Tensor | None:
    """The bias, its mask applied where torch.nn.utils.prune pruned it."""
    stored, mask = module._parameters.get("bias_orig"), module._buffers.get("bias_mask")
    if stored is not None and mask is not None:
        return masked(stored, mask)
    bias = getattr(module, "bias", None)
    return bias.detach() if isinstance(bias, Tensor) else None
