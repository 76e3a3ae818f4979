"""find_layers: every weight is named, those that can't be converted with the reason."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

from ajour.layers import Layer, find_layers
from ajour.terms.errors import ConversionError


def by_name(model: nn.Module) -> dict[str, Layer]:
    return {layer.name: layer for layer in find_layers(model)}


class FakeSparsity(nn.Module):
    """As torch.ao.pruning writes it."""

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, x: Tensor) -> Tensor:
        return self.mask * x


class Conv1D(nn.Module):
    """As transformers writes it: the weight is [k, n]."""

    def __init__(self, n: int, k: int) -> None:
        super().__init__()
        self.nf, self.nx = n, k
        self.weight, self.bias = nn.Parameter(torch.randn(k, n)), nn.Parameter(torch.randn(n))


def half_mask(layer: nn.Linear) -> Tensor:
    return torch.rand_like(layer.weight) < 0.5


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
    model = nn.Sequential(Conv1D(48, 16))
    (layer,) = find_layers(model)
    assert (layer.kind, layer.shape, layer.reason) == ("Conv1D", (48, 16), None)
    assert torch.equal(layer.weight(), model[0].weight.t())


class Shifted(FakeSparsity):
    def forward(self, x: Tensor) -> Tensor:
        return self.mask * x + 1


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda m: parametrizations.weight_norm(m), "parametrization _WeightNorm"),
        (lambda m: parametrizations.orthogonal(m), "parametrization _Orthogonal"),
        (lambda m: parametrizations.spectral_norm(m), "parametrization _SpectralNorm"),
        (lambda m: parametrize.register_parametrization(m, "bias", nn.Identity()), "parametrization makes its bias"),
        (lambda m: parametrize.register_parametrization(m, "weight", Shifted(half_mask(m))), "Shifted"),
        (lambda m: nn.utils.weight_norm(m), "carries the hook WeightNorm"),
        (lambda m: delattr(m, "weight"), "no parameter named weight"),
        (lambda m: m.register_forward_hook(lambda *_: None), "carries the hook <lambda>"),
        (lambda m: m.register_forward_pre_hook(lambda *_: None), "which a swap would lose"),
        (lambda m: m.register_full_backward_hook(lambda *_: None), "which a swap would lose"),
        (lambda m: setattr(m, "forward", m.forward), "replaced on the instance"),
        (lambda m: m.to(torch.complex64), "complex64; the formats hold"),
        (lambda m: m.to(torch.float8_e4m3fn), "float8_e4m3fn; the formats hold"),
        (lambda m: m.to("meta"), "meta device"),
        (lambda m: m.register_buffer("_weight_mask", half_mask(m)), "its forward does not apply it"),
        (lambda m: m.register_buffer("__weight_mma_mask", half_mask(m)), "as Apex ASP writes it"),
        (lambda m: m.register_buffer("mask", half_mask(m)), "as MaskLLM writes it"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*weight_norm.*", "ignore:Complex modules")
def test_what_a_swap_would_break_is_refused_by_name(make: object, reason: str) -> None:
    model = nn.Sequential(nn.Linear(32, 32))
    make(model[0])  # type: ignore[operator]
    (layer,) = find_layers(model)
    assert reason in str(layer.reason)
    assert layer.shape == (32, 32)


def test_tied_weights_name_their_twin() -> None:
    model = nn.ModuleDict({"embed": nn.Embedding(64, 32), "free": nn.Linear(32, 32), "head": nn.Linear(32, 64)})
    model["head"].weight = model["embed"].weight
    layers = by_name(model)
    assert "tied to embed.weight" in str(layers["head"].reason)
    assert layers["free"].reason is None


def test_tied_weights_are_seen_under_a_pruning_mask_and_on_meta() -> None:
    model = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 32))
    model[1].weight = model[0].weight
    prune.l1_unstructured(model[1], "weight", 0.5)
    assert "tied to 0.weight" in str(by_name(model)["1"].reason)
    with torch.device("meta"):
        free = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 32))
    assert not any("tied" in str(layer.reason) for layer in find_layers(free))


def test_one_module_under_two_names_is_tied_to_itself() -> None:
    shared = nn.Linear(32, 32)
    layers = by_name(nn.ModuleDict({"a": shared, "b": shared}))
    assert "tied to b.weight" in str(layers["a"].reason)
    assert "tied to a.weight" in str(layers["b"].reason)


@pytest.mark.filterwarnings("ignore:Initializing zero-element")
def test_empty_weights_are_not_tied_to_each_other() -> None:
    model = nn.Sequential(nn.Linear(0, 4), nn.Linear(0, 4))
    assert [layer.reason for layer in find_layers(model)] == [None, None]


def test_attention_keeps_its_projections() -> None:
    layers = by_name(nn.TransformerEncoderLayer(32, 4))
    assert "passes in_proj_weight to a functional" in str(layers["self_attn.in_proj_weight"].reason)
    assert "passes out_proj.weight to a functional" in str(layers["self_attn.out_proj"].reason)
    assert layers["self_attn.out_proj"].kind == "MultiheadAttention"
    assert layers["linear1"].reason is layers["linear2"].reason is None
    split = by_name(nn.MultiheadAttention(32, 4, kdim=16, vdim=48))
    assert {"q_proj_weight", "k_proj_weight", "v_proj_weight", "out_proj"} == set(split)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN, nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_recurrent_weights_are_reported(kind: type[nn.Module]) -> None:
    layers = find_layers(nn.Sequential(kind(32, 32)))
    assert len(layers) == 2
    assert all(layer.kind == kind.__name__ and "one fused call" in str(layer.reason) for layer in layers)
    assert layers[0].weight().shape == layers[0].shape


class MixtralExperts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.randn(4, 64, 32))
        self.router = nn.Parameter(torch.randn(16, 32))
        self.scale = nn.Parameter(torch.randn(1, 64, 32))


def test_fused_experts_and_bare_parameters_are_reported() -> None:
    layers = by_name(nn.ModuleDict({"experts": MixtralExperts()}))
    experts = layers["experts.gate_up_proj"]
    assert (experts.kind, experts.shape) == ("experts", (4, 64, 32))
    assert "the weights of 4 experts" in str(experts.reason)
    assert experts.weight().shape == (4 * 64, 32)
    assert "bare 2-D parameter" in str(layers["experts.router"].reason)
    assert "experts.scale" not in layers


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


class Scaled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def test_subclasses_with_a_forward_of_their_own_are_refused() -> None:
    (layer,) = find_layers(nn.Sequential(Scaled(32, 32)))
    assert (layer.kind, layer.reason) == ("Scaled", "Scaled has a forward of its own, so what it computes is unknown")


class Resettable(nn.Linear):
    def start_over(self) -> None:
        nn.init.zeros_(self.weight)


def test_a_subclass_with_methods_of_its_own_is_left_alone() -> None:
    (layer,) = find_layers(nn.Sequential(Resettable(32, 32)))
    assert layer.reason == "Resettable adds start_over to nn.Linear, which a swap would lose"


class Renamed(nn.Linear):
    pass


def test_subclasses_with_linear_s_own_forward_are_taken() -> None:
    (layer,) = find_layers(nn.Sequential(Renamed(32, 32)))
    assert (layer.kind, layer.reason) == ("Linear", None)


def test_lazy_layers_say_so_and_have_no_weight_to_read() -> None:
    (layer,) = find_layers(nn.Sequential(nn.LazyLinear(16)))
    assert "run the model once" in str(layer.reason)
    with pytest.raises(ConversionError, match="layer '0' has no readable weight: its weight is not initialized"):
        layer.weight()


def test_tensor_subclasses_are_refused() -> None:
    class Packed(Tensor):
        pass

    model = nn.Sequential(nn.Linear(32, 32))
    model[0].weight = nn.Parameter(torch.randn(32, 32).as_subclass(Packed))
    assert "not a plain tensor" in str(find_layers(model)[0].reason)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:torch.quantize_per_tensor")
def test_quantized_layers_are_reported() -> None:
    model = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(32, 16)), {nn.Linear})
    (layer,) = find_layers(model)
    assert layer.shape == (16, 32)
    assert "holds its weight in a form of its own" in str(layer.reason)


def test_a_bias_of_another_dtype_is_refused() -> None:
    model = nn.Sequential(nn.Linear(32, 32))
    model[0].bias = nn.Parameter(model[0].bias.double())
    assert "its bias is torch.float64" in str(find_layers(model)[0].reason)


def test_copies_are_independent() -> None:
    model = nn.Sequential(nn.Linear(32, 32))
    twin = copy.deepcopy(model)
    assert not any("tied" in str(layer.reason) for layer in find_layers(nn.ModuleList([model, twin])))


def test_what_a_layer_holds_beside_its_weight_would_be_lost() -> None:
    model = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 32))
    model[0].register_buffer("scale", torch.ones(1))
    model[1].norm = nn.LayerNorm(32)
    reasons = [layer.reason for layer in find_layers(model)]
    assert reasons == [f"it also holds {name}, which a swap would lose" for name in ("scale", "norm")]


def test_a_layer_that_is_itself_compiled_is_kept() -> None:
    (layer,) = find_layers(torch.compile(nn.Linear(32, 32), backend="eager"))  # type: ignore[arg-type]
    assert "compile afterwards" in str(layer.reason)
