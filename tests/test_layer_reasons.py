"""What a swap would break is refused, each by a sentence of its own."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

from ajour.layers import Layer, find_layers
from factories import conv1d


def by_name(model: nn.Module) -> dict[str, Layer]:
    return {layer.name: layer for layer in find_layers(model)}


def half_mask(layer: nn.Linear) -> Tensor:
    return torch.rand_like(layer.weight) < 0.5


class Shifted(nn.Module):
    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask)

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


class Aliased(nn.Module):
    """A layer whose weight is also elsewhere: in a buffer, or as some rows or columns of something larger."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.fc = nn.Linear(16, 32)
        big = torch.randn(64, 48)
        if kind == "buffer":
            self.register_buffer("also", self.fc.weight.detach())
        elif kind == "row of the weight":
            self.register_buffer("also", self.fc.weight.detach()[3])
        else:
            self.also = nn.Parameter(big if kind.endswith("of all") else big[32:] if "rows" in kind else big[:32, 16:])
            own = big[:32, :16] if "columns" in kind else big.flatten()[: 32 * 16].view(32, 16)
            self.fc.weight = nn.Parameter(own)


@pytest.mark.parametrize("kind", ["buffer", "row of the weight", "rows of all", "columns of all"])
def test_a_weight_whose_memory_something_else_holds_too_is_tied(kind: str) -> None:
    assert "its weight is tied to also, and converting" in str(by_name(Aliased(kind))["fc"].reason)


@pytest.mark.parametrize("kind", ["other rows", "other columns"])
def test_one_storage_without_common_memory_is_no_tie(kind: str) -> None:
    assert by_name(Aliased(kind))["fc"].reason is None


def test_a_file_mapped_whole_ties_nothing(tmp_path: Path) -> None:
    torch.save(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)).state_dict(), tmp_path / "m.pt")
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    model.load_state_dict(torch.load(tmp_path / "m.pt", mmap=True), assign=True)
    assert [layer.reason for layer in find_layers(model)] == [None, None]


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


class Called(nn.Linear):
    def __call__(self, x: Tensor) -> Tensor:
        y: Tensor = super().__call__(x) * 2
        return y


class Doubled(nn.Linear):
    def __getattr__(self, name: str) -> object:
        value = super().__getattr__(name)
        return value * 2 if name == "weight" else value


@pytest.mark.parametrize(("kind", "method"), [(Called, "__call__"), (Doubled, "__getattr__")])
@pytest.mark.parametrize("masked", [False, True], ids=["plain", "parametrized"])
def test_a_subclass_with_a_call_of_its_own_is_refused(kind: type[nn.Linear], method: str, masked: bool) -> None:
    module = kind(32, 32)
    if masked:
        parametrize.register_parametrization(module, "weight", Shifted(half_mask(module)))
    (layer,) = find_layers(nn.Sequential(module))
    assert layer.reason is not None
    assert f"adds {method} to nn.Linear" in layer.reason


class Conv1D(nn.Module):
    """Named like the one of transformers."""

    def __init__(self, nf: int, nx: int) -> None:
        super().__init__()
        self.nf, self.weight, self.bias = nf, nn.Parameter(torch.randn(nx, nf)), nn.Parameter(torch.randn(nf))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.gelu(torch.addmm(self.bias, x, self.weight))


def test_a_conv1d_that_is_not_transformers_own_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    (layer,) = find_layers(nn.Sequential(Conv1D(48, 16)))
    assert layer.reason == "weight is a bare 2-D parameter of Conv1D, no linear layer"
    model = nn.Sequential(conv1d(48, 16))
    assert find_layers(model)[0].reason is None
    monkeypatch.setattr(type(model[0]), "forward", Conv1D.forward)
    assert find_layers(model)[0].reason == "weight is a bare 2-D parameter of Conv1D, no linear layer"


class Tripled(prune.RandomUnstructured):
    def apply_mask(self, module: nn.Module) -> Tensor:
        return super().apply_mask(module) * 3


class TripledInCall(prune.RandomUnstructured):
    def __call__(self, module: nn.Module, inputs: object) -> None:
        setattr(module, self._tensor_name, self.apply_mask(module) * 3)


@pytest.mark.parametrize("method", [Tripled, TripledInCall])
def test_a_pruning_method_that_does_not_just_mask_is_refused(method: type[prune.BasePruningMethod]) -> None:
    module = nn.Linear(32, 32)
    method.apply(module, "weight", 0.5)
    (layer,) = find_layers(nn.Sequential(module))
    assert layer.reason == f"it carries the hook {method.__name__}, which a swap would lose; remove it first"


class Renamed(nn.Linear):
    """With what a construction of its own needs."""

    __constants__: ClassVar[list[str]] = ["in_features", "out_features"]
    many: int

    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes)


def test_subclasses_with_linear_s_own_forward_are_taken() -> None:
    (layer,) = find_layers(nn.Sequential(Renamed(32, 32)))
    assert (layer.kind, layer.reason) == ("Linear", None)


def test_tensor_subclasses_are_refused() -> None:
    class Packed(Tensor):
        pass

    model = nn.Sequential(nn.Linear(32, 32))
    model[0].weight = nn.Parameter(torch.randn(32, 32).as_subclass(Packed))
    assert "not a plain tensor" in str(find_layers(model)[0].reason)


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
