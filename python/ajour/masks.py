"""The masks that pruning tools leave on a layer: where they stand and whether the layer's forward applies them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.prune import BasePruningMethod

T = TypeVar("T")


@dataclass(frozen=True)
class Producer:
    """A tool that keeps weight and mask apart, and the names of both beside a layer (and so in its state_dict)."""

    name: str
    weight: str
    mask: str


PRUNE = Producer("torch.nn.utils.prune", "weight_orig", "weight_mask")
PARAMETRIZATION = Producer("parametrization", "parametrizations.weight.original", "parametrizations.weight.0.mask")
MODELOPT = Producer("modelopt", "weight", "_weight_mask")
ASP = Producer("Apex ASP", "weight", "__weight_mma_mask")
MASKLLM = Producer("MaskLLM", "weight", "mask")
NNCF = "NNCF"
_REMOVE = "remove it with torch.nn.utils.parametrize.remove_parametrizations"
PRODUCERS = (PRUNE, PARAMETRIZATION, MODELOPT, ASP, MASKLLM)


@dataclass(frozen=True)
class Found:
    """What stands on one module.

    weight: what the forward multiplies by, masks applied, in the module's own orientation; None if that is unknown.
    source: the tool whose mask shaped it, or None. reason: why the layer can't be converted, or None.
    """

    weight: Tensor | None
    source: str | None = None
    reason: str | None = None


def read_weight(module: nn.Module, nncf_mask: Tensor | None = None) -> Found:
    """The finalised weight of a linear layer or a convolution; the module is left as it is.

    nncf_mask: comes from `nncf_masks`.
    """
    if hasattr(module, "parametrizations"):
        return _parametrized(module)
    if "weight_orig" in module._parameters:
        return _pruned(module)
    weight = module._parameters.get("weight")
    if weight is None:
        return Found(None, reason="it holds no parameter named weight; a hook or a wrapper makes its weight on the fly")
    if nncf_mask is not None:
        return Found(_masked(weight, nncf_mask), NNCF)
    for producer in (MODELOPT, ASP, MASKLLM):
        mask = module._buffers.get(producer.mask, module._parameters.get(producer.mask))
        if mask is not None and mask.shape == weight.shape:
            return _beside(module, weight, mask, producer)
    return Found(weight.detach())


def read_bias(module: nn.Module) -> Tensor | None:
    """The bias, its mask applied where torch.nn.utils.prune pruned it."""
    stored, mask = module._parameters.get("bias_orig"), module._buffers.get("bias_mask")
    if stored is not None and mask is not None:
        return _masked(stored, mask)
    bias = getattr(module, "bias", None)
    return bias.detach() if isinstance(bias, Tensor) else None


def read_pruned(module: nn.Module, stored: str) -> Tensor | None:
    """The parameter `stored` ("weight_orig", "weight_hh_l0_orig", ...) under the mask that torch's hook applies.

    None where no such hook and mask stand.
    """
    name = stored.removesuffix("_orig")
    hooks = [hook for hook in module._forward_pre_hooks.values() if getattr(hook, "_tensor_name", "") == name]
    weight, mask = module._parameters.get(stored), module._buffers.get(f"{name}_mask")
    if name == stored or weight is None or mask is None or len(hooks) != 1 or not is_prune_hook(hooks[0]):
        return None
    return _masked(weight, mask)


def is_prune_hook(hook: object) -> bool:
    """Whether a forward pre-hook is torch.nn.utils.prune's own, whose effect `read_weight` and `read_bias` include."""
    return isinstance(hook, BasePruningMethod)


def nncf_masks(model: nn.Module) -> dict[str, Tensor]:
    """NNCF's masks by the full name of the parameter, from the hook storage that it hangs into the model."""
    storage = model._modules.get("__nncf_hooks")
    return {} if storage is None else nncf_masks_in(dict(storage.named_buffers()))


def nncf_masks_in(tensors: Mapping[str, T]) -> dict[str, T]:
    """The same from the items of a state_dict: keys end in `post_hooks.encoder:fc:weight__0.0.binary_mask`."""
    masks = {}
    for key, tensor in tensors.items():
        if key.endswith(".binary_mask") and "post_hooks." in key:
            place = key.split("post_hooks.")[1].split(".")[0]
            masks[place.rpartition("__")[0].replace(":", ".")] = tensor
    return masks


def _masked(weight: Tensor, mask: Tensor) -> Tensor:
    """weight * mask, as the tools' forwards compute it (so Inf under the mask is their NaN)."""
    return weight.detach() * mask.detach().to(weight.dtype)


def _pruned(module: nn.Module) -> Found:
    weight = read_pruned(module, "weight_orig")
    if weight is None:
        return Found(None, reason="its weight_orig stands without the mask and the hook of torch.nn.utils.prune")
    return Found(weight, PRUNE.name)


def _parametrized(module: nn.Module) -> Found:
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
        masked = _masked(weight, mask)
        with torch.no_grad():
            if not same(step(weight), masked):
                return Found(None, reason=refusal)
        weight = masked
    return Found(weight, PARAMETRIZATION.name)


def _beside(module: nn.Module, weight: Tensor, mask: Tensor, producer: Producer) -> Found:
    """A mask beside the weight counts where the weight is zero under it, or reading `.weight` applies it (modelopt)."""
    masked = _masked(weight, mask)
    seen = module.weight
    if isinstance(seen, Tensor) and same(seen.detach(), masked):
        return Found(masked, producer.name)
    return Found(
        weight.detach(),
        reason=f"a mask stands beside its weight ({producer.mask}, as {producer.name} writes it), but its forward does "
        "not apply it; multiply the weight by it, or delete the mask",
    )


def same(a: Tensor, b: Tensor) -> bool:
    """Equal values, NaN equal to NaN and -0.0 to 0.0; tensors without data count as equal."""
    return a.is_meta or b.is_meta or bool(((a == b) | (a.isnan() & b.isnan())).all())
