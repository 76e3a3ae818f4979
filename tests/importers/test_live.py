"""The masks of every producer, as they stand on a module, are found and applied."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

from ajour.layers import find_layers


class FakeSparsity(nn.Module):
    """As torch.ao.pruning writes it."""

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, x: Tensor) -> Tensor:
        return self.mask * x


class SparseLinear(nn.Linear):
    """As modelopt makes it: `weight` is computed when it is read."""

    def __getattr__(self, name: str) -> Tensor:
        value = super().__getattr__(name)
        return value * self._weight_mask if name == "weight" and "_weight_mask" in self._buffers else value


def half_mask(layer: nn.Linear) -> Tensor:
    return torch.rand_like(layer.weight) < 0.5


def test_prune_masks_are_applied_to_weight_and_bias() -> None:
    model = nn.Sequential(nn.Linear(32, 48))
    prune.l1_unstructured(model[0], "weight", 0.5)
    prune.random_unstructured(model[0], "weight", 0.5)
    prune.l1_unstructured(model[0], "bias", 0.5)
    (layer,) = find_layers(model)
    assert (layer.mask_source, layer.reason) == ("torch.nn.utils.prune", None)
    assert torch.equal(layer.weight(), model[0].weight)
    bias = layer.bias()
    assert bias is not None
    assert torch.equal(bias, model[0].bias)


def test_a_bias_alone_may_be_pruned() -> None:
    model = nn.Sequential(nn.Linear(32, 48))
    prune.l1_unstructured(model[0], "bias", 0.5)
    (layer,) = find_layers(model)
    assert (layer.mask_source, layer.reason) == (None, None)


def test_orphaned_prune_parameters_are_refused() -> None:
    model = nn.Sequential(nn.Linear(32, 48))
    prune.l1_unstructured(model[0], "weight", 0.5)
    model[0]._forward_pre_hooks.clear()
    assert "without the mask and the hook" in str(find_layers(model)[0].reason)


def test_masks_as_parametrizations_are_applied() -> None:
    model = nn.Sequential(nn.Linear(32, 48))
    parametrize.register_parametrization(model[0], "weight", FakeSparsity(half_mask(model[0])))
    (layer,) = find_layers(model)
    assert (layer.kind, layer.mask_source, layer.reason) == ("Linear", "parametrization", None)
    assert torch.equal(layer.weight(), model[0].weight)


def test_masks_that_the_weight_already_obeys_are_recognised() -> None:
    for name, source in (("__weight_mma_mask", "Apex ASP"), ("_weight_mask", "modelopt"), ("mask", "MaskLLM")):
        model = nn.Sequential(nn.Linear(32, 32))
        mask = half_mask(model[0])
        model[0].register_buffer(name, mask)
        model[0].weight.data.mul_(mask)
        (layer,) = find_layers(model)
        assert (layer.mask_source, layer.reason) == (source, None)
        assert torch.equal(layer.weight() != 0, mask)


def test_modelopt_weights_are_read_through_their_mask() -> None:
    model = nn.Sequential(SparseLinear(32, 32))
    model[0].register_buffer("_weight_mask", half_mask(model[0]))
    raw = model[0]._parameters["weight"]
    (layer,) = find_layers(model)
    assert (layer.mask_source, layer.reason) == ("modelopt", None)
    assert torch.equal(layer.weight() != 0, model[0]._weight_mask)
    assert not torch.equal(layer.weight(), raw)


def test_nncf_masks_are_found_in_the_hook_storage() -> None:
    model = nn.Sequential(nn.Sequential(nn.Linear(32, 32)), nn.Linear(32, 16))
    mask = half_mask(model[0][0])
    hook = nn.Module()
    hook.register_buffer("binary_mask", mask)
    storage = nn.Module()
    storage.post_hooks = nn.ModuleDict({"0:0:weight__0": nn.ModuleDict({"0": hook})})
    model.add_module("__nncf_hooks", storage)
    masked, plain = find_layers(model)
    assert (masked.mask_source, plain.mask_source) == ("NNCF", None)
    assert torch.equal(masked.weight(), model[0][0].weight * mask)
