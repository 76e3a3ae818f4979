"""find_layers: every weight is named, those that can't be converted with the reason."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

from ajour.layers import find_layers
from ajour.terms.errors import ConversionError
from factories import conv1d


class FakeSparsity(nn.Module):
    """As torch.ao.pruning writes it."""

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, x: Tensor) -> Tensor:
        return self.mask * x


def test_plain_layers_are_listed_in_module_order_with_their_weight() -> None:
    model = nn.Sequential(nn.Linear(24, 32), nn.ReLU(), nn.Sequential(nn.Linear(32, 16, bias=False)))
    first, second = find_layers(model)
    assert [first.name, second.name] == ["0", "2.0"]
    assert (first.kind, first.shape, first.dtype, first.reason) == ("Linear", (32, 24), torch.float32, None)
    assert torch.equal(first.weight(), model[0].weight)
    assert not first.weight().requires_grad
    bias = first.bias()
    assert bias is not None
    assert torch.equal(bias, model[0].bias)
    assert second.bias() is None


def test_a_lone_layer_is_a_model() -> None:
    (layer,) = find_layers(nn.Linear(16, 16))
    assert layer.name == ""
    assert layer.reason is None


def test_finding_changes_nothing() -> None:
    model = nn.Sequential(nn.Linear(32, 32), nn.TransformerEncoderLayer(32, 4))
    prune.random_unstructured(model[0], "weight", 0.5)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for layer in find_layers(model):
        layer.weight().zero_() if layer.mask_source else layer.weight()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_conv1d_is_turned_to_out_by_in() -> None:
    model = nn.Sequential(conv1d(48, 16))
    (layer,) = find_layers(model)
    assert (layer.kind, layer.shape, layer.reason) == ("Conv1D", (48, 16), None)
    assert torch.equal(layer.weight(), model[0].weight.t())


def test_convolutions_are_reported_embeddings_and_norms_are_not() -> None:
    model = nn.Sequential(nn.Conv2d(16, 32, 1), nn.Conv2d(32, 32, 3), nn.Embedding(64, 32), nn.LayerNorm(32))
    model.extend([nn.LazyConv2d(8, 3), nn.Conv2d(3, 8, 3, device="meta")])
    pointwise, wide, lazy, meta = find_layers(model)
    assert (lazy.kind, lazy.read, meta.shape, meta.read) == ("LazyConv2d", None, (8, 27), None)
    assert (pointwise.shape, wide.shape) == ((32, 16), (32, 288))
    assert "only linear layers are converted" in str(pointwise.reason)
    assert wide.weight().shape == (32, 288)


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (nn.Conv2d(3, 8, 3), (8, 27)),
        (nn.Conv2d(32, 32, (5, 1), groups=32), (32, 5)),
        (nn.ConvTranspose2d(16, 4, 2), (16, 16)),
    ],
)
def test_convolutions_of_any_size_are_read_with_their_mask(module: nn.Module, shape: tuple[int, int]) -> None:
    prune.l1_unstructured(module, "weight", 0.9)
    (layer,) = find_layers(nn.Sequential(module))
    assert (layer.name, layer.shape, layer.mask_source) == ("0", shape, "torch.nn.utils.prune")
    assert torch.equal(layer.weight(), module.weight.detach().reshape(shape))
    prune.remove(module, "weight")
    assert [(layer.shape, layer.mask_source) for layer in find_layers(module)] == [(shape, None)]


def test_parametrized_convolutions_are_reported() -> None:
    model = nn.Sequential(nn.Conv2d(16, 32, 3), parametrizations.weight_norm(nn.Conv2d(32, 32, 3)))
    parametrize.register_parametrization(model[0], "weight", FakeSparsity(torch.rand_like(model[0].weight) < 0.5))
    masked, normed = find_layers(model)
    assert (masked.name, masked.mask_source) == ("0", "parametrization")
    assert torch.equal(masked.weight(), model[0].weight.detach().flatten(1))
    assert (normed.name, normed.shape, normed.read) == ("1", (32, 288), None)


def test_a_mask_inside_a_recurrent_layer_is_applied() -> None:
    model = nn.Sequential(nn.LSTM(32, 32))
    prune.l1_unstructured(model[0], "weight_hh_l0", 0.9)
    (pruned,) = (layer for layer in find_layers(model) if layer.mask_source == "torch.nn.utils.prune")
    assert torch.equal(pruned.weight(), model[0].weight_hh_l0.detach())


def test_lazy_layers_say_so_and_have_no_weight_to_read() -> None:
    (layer,) = find_layers(nn.Sequential(nn.LazyLinear(16)))
    assert "run the model once" in str(layer.reason)
    with pytest.raises(ConversionError, match="layer '0' has no readable weight: its weight is not initialized"):
        layer.weight()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:torch.quantize_per_tensor")
def test_quantized_layers_are_reported() -> None:
    model = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(32, 16)), {nn.Linear})
    (layer,) = find_layers(model)
    assert layer.shape == (16, 32)
    assert "holds its weight in a form of its own" in str(layer.reason)
