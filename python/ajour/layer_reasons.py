"""Why a weight can't be swapped for a sparse layer: one sentence for each thing that a swap would break."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from ajour.formats.matrix import DTYPES
from ajour.importers import live, modelopt
from ajour.importers.live import read_bias
from ajour.importers.torch_prune import is_prune_hook

_CONV1D = "transformers.pytorch_utils"
# what every class has, and what only its construction and its looks need
_HARMLESS = frozenset((
    "__annotate__", "__annotate_func__", "__annotations__", "__annotations_cache__", "__classdictcell__",
    "__constants__", "__dict__", "__doc__", "__firstlineno__", "__init__", "__module__", "__new__", "__orig_bases__",
    "__parameters__", "__qualname__", "__repr__", "__static_attributes__", "__str__", "__type_params__", "__weakref__",
))  # fmt: skip
_KNOWN_PARTS = {"weight", "bias"} | live.PARTS


def is_conv1d(module: nn.Module) -> bool:
    """Whether it is the Conv1D of Hugging Face transformers, a linear layer with a transposed weight [k, n]."""
    kind = type(module)
    return kind.__name__ == "Conv1D" and kind.__module__ == kind.forward.__module__ == _CONV1D


def is_plain(module: nn.Module) -> bool:
    """Whether its forward is nn.Linear's own."""
    return type(module).forward is nn.Linear.forward


def why_not(
    name: str, module: nn.Module, weight: Tensor, unread: str | None, inside_attention: bool, twins: Mapping[str, str]
) -> str | None:
    """The first reason against swapping a linear layer or a Conv1D, None if there is none.

    weight: as its forward reads it, or any of its parameters with unread, the reason why that is unknown; twins: name
    -> another name of the same tensor.
    """
    return (
        _attention_reason(inside_attention)
        or _wrapped_reason(name)
        or _forward_reason(module)
        or unread
        or _tensor_reason(module, weight)
        or _tied_reason(name, twins)
    )


def _own_methods(module: nn.Module) -> list[str]:
    """What a subclass of nn.Linear defines besides its construction; the class that parametrize makes is left out."""
    if is_conv1d(module):
        return []
    made = 1 if is_parametrized(module) else 0
    classes = type(module).__mro__[made : type(module).__mro__.index(nn.Linear)]
    own = [kind for kind in classes if not modelopt.is_sparse_class(kind, module)]
    return [name for kind in own for name in vars(kind) if name not in _HARMLESS]


def _wrapped_reason(name: str) -> str | None:
    """torch.compile's wrapper calls the module that it was made of, whatever takes its place."""
    leaf = name.rpartition(".")[2]
    return "torch.compile wraps this very layer; convert it first, compile afterwards" if leaf == "_orig_mod" else None


def _attention_reason(inside: bool) -> str | None:
    if not inside:
        return None
    return "MultiheadAttention passes out_proj.weight to a functional and never calls the layer"


def _forward_reason(module: nn.Module) -> str | None:
    """Why the forward is not known to be x @ w.T + bias."""
    name = type(module).__name__
    if not is_conv1d(module) and not is_plain(module):
        return f"{name} has a forward of its own, so what it computes is unknown"
    if methods := _own_methods(module):
        return f"{name} adds {', '.join(methods)} to nn.Linear, which a swap would lose"
    if "forward" in vars(module):
        return "its forward was replaced on the instance (offloading does so), and a swap would lose that"
    hooks = [
        *module._forward_hooks.values(), *module._forward_pre_hooks.values(),
        *module._backward_hooks.values(), *module._backward_pre_hooks.values(),
    ]  # fmt: skip
    foreign = [hook for hook in hooks if not is_prune_hook(hook)]
    if foreign:
        hook = getattr(foreign[0], "__name__", type(foreign[0]).__name__)
        return f"it carries the hook {hook}, which a swap would lose; remove it first"
    others = _others(module)
    return f"it also holds {', '.join(others)}, which a swap would lose" if others else None


def _others(module: nn.Module) -> list[str]:
    """What a module holds beside weight, bias and the masks that pruning tools leave there."""
    held = (*module._parameters, *module._buffers, *module._modules)
    return [name for name in held if name not in _KNOWN_PARTS]


def _tensor_reason(module: nn.Module, weight: Tensor) -> str | None:
    if type(weight) not in (Tensor, nn.Parameter):
        return f"its weight is a {type(weight).__name__}, not a plain tensor"
    if weight.dim() != 2:
        return f"its weight has {weight.dim()} dimensions, expected 2"
    if weight.dtype not in DTYPES:
        held = ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES)
        return f"its weight is {str(weight.dtype).removeprefix('torch.')}; the formats hold {held}"
    bias = read_bias(module)
    if bias is not None and (bias.dtype != weight.dtype or bias.device != weight.device):
        return f"its bias is {bias.dtype} on {bias.device}, its weight {weight.dtype} on {weight.device}"
    return None


def _tied_reason(name: str, twins: Mapping[str, str]) -> str | None:
    for stored in ("weight", "weight_orig", "parametrizations.weight.original"):
        twin = twins.get(f"{name}.{stored}" if name else stored)
        if twin is not None:
            return f"its weight is tied to {twin}, and converting one would untie them"
    return None


def kind_and_reason(name: str, module: nn.Module, leaf: str, p: Tensor) -> tuple[str, str]:
    """The kind of a layer that can't be converted, and why it can't."""
    kind = type(module).__name__
    if isinstance(module, nn.MultiheadAttention):
        return "MultiheadAttention", f"MultiheadAttention passes {leaf} to a functional; there is no layer to swap"
    if isinstance(module, (nn.RNNBase, nn.RNNCellBase)):
        return kind, f"{kind} runs its {leaf} inside one fused call; there is no layer to swap"
    if p.dim() == 3 and ("expert" in name.lower() or "expert" in kind.lower()):
        return "experts", f"fused experts: {kind} holds the weights of {p.shape[0]} experts in one 3-D parameter"
    return kind, f"{leaf} is a bare {p.dim()}-D parameter of {kind}, no linear layer"
