"""The masks of every tool, as they stand on a live model, are found, applied and converted."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

import ajour
from ajour.layers import find_layers
from hand_plan import hand_plan


class FakeSparsity(nn.Module):
    """As torch.ao.pruning writes it."""

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, x: Tensor) -> Tensor:
        return self.mask * x


class SparseLinear(nn.Linear):
    """As modelopt makes it: `weight` is computed when it is read, and its classes add methods of their own."""

    __module__ = "modelopt.torch.opt.dynamic"

    def set_mask(self, mask: Tensor) -> None:
        self._weight_mask = mask

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


def with_nncf(model: nn.Module, hooks: dict[str, dict[str, Tensor]]) -> nn.Module:
    """The storage of hooks that NNCF hangs into a model; hooks: place -> the buffers of its one hook."""
    storage = nn.Module()
    storage.post_hooks = nn.ModuleDict()
    for place, buffers in hooks.items():
        hook = nn.Module()
        for name, buffer in buffers.items():
            hook.register_buffer(name, buffer)
        storage.post_hooks[place] = nn.ModuleDict({"0": hook})
    model.add_module("__nncf_hooks", storage)
    return model


def test_nncf_masks_are_found_in_the_hook_storage() -> None:
    model = nn.Sequential(nn.Sequential(nn.Linear(32, 32)), nn.Linear(32, 16))
    mask = half_mask(model[0][0])
    masked, plain = find_layers(with_nncf(model, {"0:0:weight__0": {"binary_mask": mask}}))
    assert (masked.mask_source, plain.mask_source) == ("NNCF", None)
    assert torch.equal(masked.weight(), model[0][0].weight * mask)


def test_another_hook_of_nncf_s_on_a_weight_is_refused() -> None:
    model = with_nncf(nn.Sequential(nn.Linear(32, 32)), {"0:weight__0": {"mask": torch.randn(32, 32)}})
    (layer,) = find_layers(model)
    assert "a hook of NNCF's makes its weight" in str(layer.reason)


class PrunedModel(nn.Module):
    """As OpenLTH wraps a model: masks at the root, applied to the parameters before each forward."""

    def __init__(self, model: nn.Module, masks: dict[str, Tensor]) -> None:
        super().__init__()
        self.model = model
        for name, mask in masks.items():
            self.register_buffer("mask_" + name.replace(".", "___"), mask.float())

    def forward(self, x: Tensor) -> Tensor:
        for name, parameter in self.model.named_parameters():
            if hasattr(self, "mask_" + name.replace(".", "___")):
                parameter.data *= getattr(self, "mask_" + name.replace(".", "___"))
        return self.model(x)


def test_openlth_masks_count_before_its_forward_applies_them() -> None:
    inner = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 32))
    mask = half_mask(inner[0])
    masked, plain = find_layers(PrunedModel(inner, {"0.weight": mask}))
    assert (masked.name, masked.mask_source, plain.mask_source) == ("model.0", "OpenLTH", None)
    assert torch.equal(masked.weight(), inner[0].weight * mask)


def test_a_wrapper_whose_forward_leaves_a_mask_be_is_not_taken_for_openlth() -> None:
    model, plain = nn.Sequential(nn.Linear(32, 32)), nn.Module()
    mask = half_mask(model[0])
    plain.model = model
    plain.register_buffer("mask_0___weight", mask.float())
    (layer,) = find_layers(plain)
    assert layer.mask_source is None
    assert torch.equal(layer.weight(), model[0].weight)
    model[0].weight.data.mul_(mask)
    (obeying,) = find_layers(plain)
    assert obeying.mask_source == "OpenLTH"


def two_of_four() -> Tensor:
    return torch.ones(64, 16, 4).scatter(-1, torch.rand(64, 16, 4).topk(2).indices, 0.0).view(64, 64) != 0


def as_torch_prune(model: nn.Sequential, mask: Tensor) -> nn.Module:
    prune.custom_from_mask(model[0], "weight", mask)
    return model


def as_parametrization(model: nn.Sequential, mask: Tensor) -> nn.Module:
    parametrize.register_parametrization(model[0], "weight", FakeSparsity(mask))
    return model


def squashed(model: nn.Sequential, mask: Tensor) -> nn.Module:
    parametrize.remove_parametrizations(as_parametrization(model, mask)[0], "weight", leave_parametrized=True)
    model[0].sparse_params = {"sparse_block_shape": (1, 4)}
    return model


def as_modelopt(model: nn.Sequential, mask: Tensor) -> nn.Module:
    model[0] = SparseLinear(64, 64)
    model[0].register_buffer("_weight_mask", mask)
    return model


def beside(name: str) -> Callable[[nn.Sequential, Tensor], nn.Module]:
    def hold(model: nn.Sequential, mask: Tensor) -> nn.Module:
        model[0].register_buffer(name, mask)
        model[0].weight.data.mul_(mask)
        return model

    return hold


def by_a_mapping(model: nn.Sequential, mask: Tensor) -> nn.Module:
    return ajour.read({"0.weight": mask}, model)


STATES: dict[str, Callable[[nn.Sequential, Tensor], nn.Module]] = {
    "torch prune": as_torch_prune,
    "parametrization": as_parametrization,
    "squashed": squashed,
    "modelopt": as_modelopt,
    "asp": beside("__weight_mma_mask"),
    "maskllm": beside("mask"),
    "mapping": by_a_mapping,
    "openlth": lambda model, mask: PrunedModel(model, {"0.weight": mask}),
}


@pytest.mark.parametrize("state", STATES)
def test_a_live_model_of_each_state_is_planned_and_converted(state: str) -> None:
    mask = two_of_four()
    model = STATES[state](nn.Sequential(nn.Linear(64, 64), nn.ReLU()), mask).eval()
    before = [layer.weight().clone() for layer in find_layers(model)]
    assert [layer.pattern for layer in ajour.inspect(model).layers] == [ajour.NM(2, 4)]
    x = torch.randn(3, 64)
    dense = model(x)
    converted = ajour.convert(model, hand_plan(model))
    assert torch.allclose(converted(x), dense, atol=1e-5)
    stored = "model.0.values" if state == "openlth" else "0.values"
    assert torch.equal(converted.state_dict()[stored], before[0][mask].view(64, 32))
    after = [layer.weight() for layer in find_layers(ajour.revert(converted))]
    assert all(torch.equal(w, old) for w, old in zip(after, before, strict=True))


def test_a_model_that_can_t_be_copied_is_converted() -> None:
    model = as_torch_prune(nn.Sequential(nn.Linear(64, 64)), two_of_four())
    model(torch.randn(2, 64))
    with pytest.raises(RuntimeError, match="deepcopy protocol"):
        copy.deepcopy(model)
    plan = ajour.plan(model, torch.randn(2, 64), margin=float("-inf"), progress=False)
    converted = ajour.convert(model, plan)
    assert type(converted[0]) is ajour.nn.NMLinear
    assert "weight_orig" not in converted[0].state_dict()
