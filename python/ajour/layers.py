"""find_layers: the weights of a model that a sparse layer could stand for, and for the others why not."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import ParametrizationList

from ajour.formats.matrix import DTYPES
from ajour.importers import live, modelopt, nncf, torch_prune
from ajour.importers.live import Rooted, model_masks, read_bias, read_weight
from ajour.importers.weights import SMALLEST_SIDE
from ajour.terms.errors import ConversionError
from ajour.terms.row_table import parse_row_table

ON_META = "its weight is on the meta device; load its values first"  # the last of all reasons: there is no other
_KNOWN_PARTS = {"weight", "bias"} | live.PARTS


@dataclass(frozen=True)
class Layer:
    """One weight of a model.

    name:        the module's path, or the parameter's where a module holds several or is no layer of its own.
    kind:        "Linear", "Conv1D", "NMLinear", "MultiheadAttention", "LSTM", "experts", "Conv2d", ...
    shape:       (n, k), whatever the module's own orientation; more sides for fused experts.
    reason:      None if the layer can be converted, else why not, in one sentence.
    mask_source: the tool whose mask is applied by the forward, or None: "torch.nn.utils.prune", "parametrization", ...
    """

    name: str
    module: nn.Module
    kind: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    reason: str | None = None
    mask_source: str | None = None
    read: Callable[[], Tensor] | None = field(default=None, repr=False)

    def weight(self) -> Tensor:
        """The dense weight [n, k], masks applied ([experts * n, k] for experts); ConversionError without values."""
        if self.read is None:
            raise ConversionError(f"layer {self.name!r} has no readable weight: {self.reason}")
        return self.read()

    def bias(self) -> Tensor | None:
        """The bias [n], or None."""
        return read_bias(self.module)


def find_layers(model: nn.Module) -> list[Layer]:
    """Every layer in module order, those that can't be converted with the reason; the model is left as it is."""
    modules = dict(model.named_modules(remove_duplicate=False))
    twins = _twins(model)
    masks = model_masks(model)
    layers: list[Layer] = []
    for name, module in modules.items():
        if "parametrizations" in name.split(".") or name.split(".")[0] == nncf.STORAGE:
            continue
        if is_converted(module):
            layers.append(_converted(name, module))
        elif isinstance(module, nn.Linear) or is_conv1d(module):
            path, _, leaf = name.rpartition(".")
            inside_attention = leaf == "out_proj" and isinstance(modules[path], nn.MultiheadAttention)
            layers.append(_linear(name, module, inside_attention, twins, masks.get(_join(name, "weight"))))
        elif isinstance(module, _ConvNd):
            layers.append(_convolution(name, module, masks.get(_join(name, "weight"))))
        else:
            layers.extend(_parameters(name, module))
            layers.extend(_packed(name, module))
    return layers


def is_conv1d(module: nn.Module) -> bool:
    """Whether it is the Conv1D of Hugging Face transformers, a linear layer with a transposed weight [k, n]."""
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf") and hasattr(module, "weight")


def is_converted(module: nn.Module) -> bool:
    """Whether it is one of ajour's own layers: it has a matrix() and the row table of its kernels."""
    return callable(getattr(module, "matrix", None)) and isinstance(getattr(module, "kernels", None), str)


def _join(path: str, leaf: str) -> str:
    return f"{path}.{leaf}" if path else leaf


def _twins(model: nn.Module) -> dict[str, str]:
    """name -> another name of the same tensor, for every parameter that stands in the model more than once."""
    first: dict[object, list[str]] = {}
    for name, p in model.named_parameters(remove_duplicate=False):
        if is_lazy(p):
            continue
        same_place = id(p) if p.is_meta or type(p) is not nn.Parameter or not p.numel() else (p.device, p.data_ptr())
        first.setdefault(same_place, []).append(name)
    return {name: names[1 if name == names[0] else 0] for names in first.values() if len(names) > 1 for name in names}


def _converted(name: str, module: nn.Module) -> Layer:
    table = parse_row_table(str(module.kernels))
    tensors = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    device = tensors[0].device if tensors else torch.device("cpu")

    def read() -> Tensor:
        dense: Tensor = module.matrix().to_dense()  # type: ignore[operator]
        return dense.detach()

    dtype = getattr(torch, table.dtype)
    return Layer(name, module, type(module).__name__, (table.n, table.k), dtype, device, read=read)


def _linear(
    name: str, module: nn.Module, inside_attention: bool, twins: dict[str, str], rooted: Rooted | None
) -> Layer:
    conv1d = is_conv1d(module)
    kind = "Conv1D" if conv1d else "Linear" if _is_plain(module) else type(module).__name__
    kind = "MultiheadAttention" if inside_attention else kind
    stored = module._parameters.get("weight_orig", module._parameters.get("weight"))
    if stored is not None and is_lazy(stored):
        lazy = (int(getattr(module, "out_features", 0)), int(getattr(module, "in_features", 0)))
        unready = "its weight is not initialized yet; run the model once on an example"
        return Layer(name, module, kind, lazy, stored.dtype, stored.device, unready)
    found = read_weight(module, rooted)
    weight = found.weight if found.weight is not None else _any_parameter(module)
    shape = tuple(weight.shape[::-1] if conv1d else weight.shape)
    if found.weight is None:
        shape = (int(getattr(module, "out_features", 0)), int(getattr(module, "in_features", 0)))
    reason = _attention_reason(inside_attention) or _wrapped_reason(name) or _forward_reason(module) or found.reason
    reason = reason or _tensor_reason(module, weight) or _tied_reason(name, twins)
    reason = reason or (ON_META if weight.is_meta else None)

    def read() -> Tensor:
        again = read_weight(module, rooted).weight
        assert again is not None
        return again.t().contiguous() if conv1d else again

    readable = found.weight is not None and not weight.is_meta
    return Layer(
        name, module, kind, shape, weight.dtype, weight.device, reason, found.source, read if readable else None
    )


def _is_plain(module: nn.Module) -> bool:
    return type(module).forward is nn.Linear.forward


def _own_methods(module: nn.Module) -> list[str]:
    """What a subclass of nn.Linear defines besides its construction; a parametrization's property is no such thing."""
    if is_conv1d(module) or hasattr(module, "parametrizations"):
        return []
    classes = type(module).__mro__[: type(module).__mro__.index(nn.Linear)]
    own = [kind for kind in classes if not modelopt.is_sparse_class(kind, module)]
    return [name for kind in own for name in vars(kind) if not name.startswith("__")]


def _any_parameter(module: nn.Module) -> Tensor:
    sized = (p for p in module.parameters() if p.dim() > 1)
    return next(sized, torch.empty(0, 0, device="meta")).detach()


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
    if not is_conv1d(module) and not _is_plain(module):
        return f"{name} has a forward of its own, so what it computes is unknown"
    if methods := _own_methods(module):
        return f"{name} adds {', '.join(methods)} to nn.Linear, which a swap would lose"
    if "forward" in vars(module):
        return "its forward was replaced on the instance (offloading does so), and a swap would lose that"
    hooks = [
        *module._forward_hooks.values(), *module._forward_pre_hooks.values(),
        *module._backward_hooks.values(), *module._backward_pre_hooks.values(),
    ]  # fmt: skip
    foreign = [hook for hook in hooks if not torch_prune.is_prune_hook(hook)]
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


def _tied_reason(name: str, twins: dict[str, str]) -> str | None:
    for stored in ("weight", "weight_orig", "parametrizations.weight.original"):
        twin = twins.get(_join(name, stored))
        if twin is not None:
            return f"its weight is tied to {twin}, and converting one would untie them"
    return None


def _convolution(name: str, module: _ConvNd, rooted: Rooted | None) -> Layer:
    """A convolution of any size, read with its mask as a linear layer is: its zeros should not go unmentioned."""
    kind = type(module).__name__
    reason = f"{kind} is a convolution; only linear layers are converted"
    first, second = module.out_channels, module.in_channels
    first, second = (second, first) if isinstance(module, _ConvTransposeNd) else (first, second)
    shape = (first, second // module.groups * math.prod(module.kernel_size))
    stored = next((p for p in module.parameters() if is_lazy(p) or p.dim() > 1), None)
    if stored is None or is_lazy(stored):
        some = torch.empty(0, device="meta") if stored is None else stored
        return Layer(name, module, kind, shape, some.dtype, some.device, reason)
    found = read_weight(module, rooted)

    def read() -> Tensor:
        again = read_weight(module, rooted).weight
        assert again is not None
        return again.flatten(1)

    readable = found.weight is not None and not found.weight.is_meta
    return Layer(
        name, module, kind, shape, stored.dtype, stored.device, reason, found.source, read if readable else None
    )


def _parameters(name: str, module: nn.Module) -> Iterator[Layer]:
    """The weights that any other module holds itself; none of them can be converted."""
    if isinstance(module, (nn.Embedding, nn.EmbeddingBag, ParametrizationList)):
        return
    for leaf, p in module._parameters.items():
        if p is None or is_lazy(p) or p.dim() < 2 or p.shape[0] == 1:
            continue
        kind, reason = _kind(name, module, leaf, p)
        if min(p.shape[-2:]) < SMALLEST_SIDE and not isinstance(module, (nn.RNNBase, nn.RNNCellBase)):
            continue
        full = name if leaf == "weight" else _join(name, leaf)
        source = None if torch_prune.read_pruned(module, leaf) is None else torch_prune.NAME

        def read(p: Tensor = p, leaf: str = leaf) -> Tensor:
            pruned = torch_prune.read_pruned(module, leaf)
            return (p.detach() if pruned is None else pruned).flatten(0, -2)

        yield Layer(full, module, kind, tuple(p.shape), p.dtype, p.device, reason, source, None if p.is_meta else read)


def _packed(name: str, module: nn.Module) -> Iterator[Layer]:
    """Linear layers of other tools that hold their weight in a form of their own, as torch's quantized ones do."""
    kind = type(module).__name__
    n, k = getattr(module, "out_features", None), getattr(module, "in_features", None)
    if "Linear" in kind and isinstance(n, int) and isinstance(k, int) and not list(module.parameters()):
        reason = f"{type(module).__module__}.{kind} holds its weight in a form of its own"
        yield Layer(name, module, kind, (n, k), getattr(module, "_dtype", torch.uint8), torch.device("cpu"), reason)


def _kind(name: str, module: nn.Module, leaf: str, p: Tensor) -> tuple[str, str]:
    """The kind of a layer that can't be converted, and why it can't."""
    kind = type(module).__name__
    if isinstance(module, nn.MultiheadAttention):
        return "MultiheadAttention", f"MultiheadAttention passes {leaf} to a functional; there is no layer to swap"
    if isinstance(module, (nn.RNNBase, nn.RNNCellBase)):
        return kind, f"{kind} runs its {leaf} inside one fused call; there is no layer to swap"
    if p.dim() == 3 and ("expert" in name.lower() or "expert" in kind.lower()):
        return "experts", f"fused experts: {kind} holds the weights of {p.shape[0]} experts in one 3-D parameter"
    return kind, f"{leaf} is a bare {p.dim()}-D parameter of {kind}, no linear layer"
