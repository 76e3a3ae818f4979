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

from ajour.importers import nncf, torch_prune
from ajour.importers.live import Rooted, model_masks, read_bias, read_weight
from ajour.importers.weights import SMALLEST_SIDE
from ajour.layer_reasons import is_conv1d, is_plain, kind_and_reason, why_not
from ajour.terms.errors import ConversionError
from ajour.terms.row_table import parse_row_table

__all__ = ["ON_META", "SMALLEST_SIDE", "Layer", "find_layers", "is_conv1d", "is_converted"]

ON_META = "its weight is on the meta device; load its values first"  # the last of all reasons: there is no other


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
    if not isinstance(model, nn.Module):
        raise ConversionError(f"expected a torch.nn.Module, found {type(model).__name__} {model!r:.80}")
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


def is_converted(module: nn.Module) -> bool:
    """Whether it is one of ajour's own layers: it has a matrix() and the row table of its kernels."""
    return callable(getattr(module, "matrix", None)) and isinstance(getattr(module, "kernels", None), str)


def _join(path: str, leaf: str) -> str:
    return f"{path}.{leaf}" if path else leaf


def _twins(model: nn.Module) -> dict[str, str]:
    """name -> the name of another parameter or buffer that holds some of the same memory; no entry without one."""
    twins: dict[str, str] = {}
    active: list[tuple[str, Tensor, _Span]] = []  # that reach beyond where the last one begins
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    spans = [(name, tensor, _span(tensor)) for name, tensor in named if not is_lazy(tensor)]
    for name, tensor, span in sorted(spans, key=lambda found: found[2][:2]):
        active = [found for found in active if found[2][0] == span[0] and found[2][2] > span[1]]
        for other, memory, _ in active:
            if memory is tensor or _overlap(memory, tensor):
                twins.setdefault(name, other)
                twins.setdefault(other, name)
        active.append((name, tensor, span))
    return twins


_Span = tuple[str, int, int]  # where its memory is, first byte, end


def _span(tensor: Tensor) -> _Span:
    plain = type(tensor) in (nn.Parameter, Tensor) and tensor.layout == torch.strided
    if tensor.is_meta or not plain or not tensor.numel():  # no memory to compare: the tensor itself
        return "", id(tensor), id(tensor) + 1
    last = sum((side - 1) * stride for side, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return str(tensor.device), tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.element_size()


def _overlap(a: Tensor, b: Tensor) -> bool:
    """Whether two plain tensors whose spans overlap share an element; columns of one weight lie between each other."""
    if (a.is_contiguous() and b.is_contiguous()) or a.dtype != b.dtype:
        return True
    begin = min(a.data_ptr(), b.data_ptr())
    places = [(t.shape, t.stride(), (t.data_ptr() - begin) // t.element_size()) for t in (a, b)]
    seen = torch.zeros(max(_span(t)[2] - begin for t in (a, b)) // a.element_size(), dtype=torch.bool)
    seen.as_strided(*places[0]).fill_(True)
    return bool(seen.as_strided(*places[1]).any())


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
    kind = "Conv1D" if conv1d else "Linear" if is_plain(module) else type(module).__name__
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
    reason = why_not(name, module, weight, found.reason, inside_attention, twins)
    reason = reason or (ON_META if weight.is_meta else None)

    def read() -> Tensor:
        again = read_weight(module, rooted).weight
        assert again is not None
        return again.t().contiguous() if conv1d else again

    readable = found.weight is not None and not weight.is_meta
    return Layer(
        name, module, kind, shape, weight.dtype, weight.device, reason, found.source, read if readable else None
    )


def _any_parameter(module: nn.Module) -> Tensor:
    sized = (p for p in module.parameters() if p.dim() > 1)
    return next(sized, torch.empty(0, 0, device="meta")).detach()


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
        kind, reason = kind_and_reason(name, module, leaf, p)
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
