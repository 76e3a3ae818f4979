"""What a sparse layer was converted from: the dense module itself, without the memory of its weight."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ajour.conversion.activations import activation_module
from ajour.layers import Layer, is_conv1d
from ajour.nn import SparseLinear


@dataclass
class Origin:
    """In a record of its own, so that the module is no part of the model.

    activation: what the layer applied before it was converted, as one that was made by hand may do.
    """

    module: nn.Module
    activation: str = "none"


def origin_of(layer: Layer) -> Origin:
    """Of a layer that is about to be converted; a masked or otherwise special one comes back as a plain layer."""
    known = getattr(layer.module, "origin", None)
    if isinstance(known, Origin):
        return known
    own = layer.module.activation if isinstance(layer.module, SparseLinear) else "none"
    return Origin(layer.module if is_plain(layer) else _plain_twin(layer), own)


def is_plain(layer: Layer) -> bool:
    """Whether its weight is all that it is made of, so that it can be emptied and filled again."""
    if layer.kind not in ("Linear", "Conv1D") or layer.mask_source is not None:
        return False
    weight = layer.module._parameters["weight"]
    return weight is not None and not weight.is_inference()  # whose memory torch does not let go


def empty(module: nn.Module) -> None:
    """Frees the weight's memory; the parameter stays the object that it is."""
    weight = module._parameters["weight"]
    assert weight is not None
    weight.data = weight.data.new_empty(0)


def fill(module: nn.Module, w: Tensor) -> None:
    """Gives the weight w: [n, k] to an emptied module, in the module's own orientation."""
    weight = module._parameters["weight"]
    assert weight is not None
    data = w.t().contiguous() if is_conv1d(module) else w
    if weight.device.type != "meta" and torch._has_compatible_shallow_copy_type(weight, data):
        weight.data = data
    else:
        module._parameters["weight"] = nn.Parameter(data, requires_grad=weight.requires_grad)


def dense_of(sparse: SparseLinear) -> nn.Module:
    """The dense module that a sparse one stands for: the one that it was converted from, filled, or an nn.Linear.

    An activation that was folded is left to the Folded that stands in its place, one of the layer's own comes along.
    """
    origin = sparse.origin if isinstance(sparse.origin, Origin) else Origin(_linear(sparse), sparse.activation)
    fill(origin.module, sparse.matrix().to_dense())
    origin.module._parameters["bias"] = sparse._parameters["bias"]
    origin.module.train(sparse.training)
    own = origin.activation
    return (
        origin.module if own == "none" else nn.Sequential(origin.module, activation_module(own)).train(sparse.training)
    )


def _linear(sparse: SparseLinear) -> nn.Linear:
    return nn.Linear(
        sparse.in_features, sparse.out_features, bias=sparse.bias is not None, device="meta", dtype=sparse.dtype
    )


def _plain_twin(layer: Layer) -> nn.Module:
    n, k = layer.shape
    with torch.device("meta"):
        if is_conv1d(layer.module):
            twin: nn.Module = type(layer.module)(n, k)  # type: ignore[call-arg]
        else:
            twin = nn.Linear(k, n, bias=layer.bias() is not None)
    trained = any(p.requires_grad for p in layer.module.parameters())
    return twin.to(layer.dtype).requires_grad_(trained)
