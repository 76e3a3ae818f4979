"""quantize rounds what it is asked to round, says exactly what that loses, and changes nothing else."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import ajour
from ajour import quantization
from ajour.formats import NMMatrix, ScaledNMMatrix
from ajour.formats.e4m3 import rounded
from ajour.nn import NMLinear, ScaledNMLinear
from ajour.quantization import Loss, loss_of
from ajour.terms.errors import ConversionError, KernelError, PatternError
from ajour.terms.pattern import NM
from forced import counting, plan_for, state_of
from pruned import bits, keep_mask, truth


def two_of_four(n: int, k: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return (torch.randn(n, k) * keep_mask(NM(2, 4), n, k)).to(dtype)


class Model(nn.Module):
    """Two layers that are 2:4 and one that is not."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down, self.head = nn.Linear(32, 64), nn.Linear(64, 32, bias=False), nn.Linear(32, 8)
        with torch.no_grad():
            for layer in (self.up, self.down):
                layer.weight.copy_(two_of_four(*layer.weight.shape, torch.float32))
        self.bfloat16().eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.down(torch.relu(self.up(x))))


def test_a_model_becomes_what_its_report_says() -> None:
    model = Model()
    weights = {name: layer.weight.detach().clone() for name, layer in model.named_children()}
    done = ajour.quantize(model)
    assert done.model is model
    assert [type(layer) for layer in model.children()] == [ScaledNMLinear, ScaledNMLinear, nn.Linear]
    assert set(done.losses) == {"up", "down"}
    assert set(done.skipped) == {"head"}
    assert "2:4 allows 2 non-zeros, found 4" in done.skipped["head"]
    x = torch.randn(5, 32).bfloat16()
    with torch.no_grad(), counting(scaled_nm_linear=2):
        y = model(x)
    hidden = torch.relu(ajour.linear(x, ScaledNMMatrix.quantize(weights["up"]), model.up.bias.detach()))
    middle = ajour.linear(hidden, ScaledNMMatrix.quantize(weights["down"]))
    assert torch.equal(bits(y), bits(model.head(middle).detach()))


def test_every_loss_is_counted_exactly() -> None:
    """A row for each kind: exact, rounded, one that became 0, and one beyond what float16's scales reach."""
    w = torch.tensor([[448.0, 0, 0, 1], [32, 0, 17, 0], [0, 256, 0, 2.0**-11], [65504, 0, 0, 0.125]]).half()
    loss = loss_of(w, ScaledNMMatrix.quantize(w))
    assert loss == Loss(
        values=8,
        max_error=65504.0 - 57344.0,
        relative_error=1.0,
        energy=loss.energy,
        clipped=1,
        zeroed=2,
        dense_bytes=32,
        sparse_bytes=8 + 4 + 8,
    )
    error = torch.tensor([1.0, 2.0**-11, 65504.0 - 57344.0, 0.125]).double()  # 17 of 32 lies between 16 and 18
    assert loss.energy == pytest.approx(float(error.square().sum() / w.double().square().sum()), rel=1e-12)


def plain_loss(w: Tensor, matrix: ScaledNMMatrix) -> Loss:
    """By the docstring of Loss, on all of the weight at once."""
    exact, rounded, scales = w.double(), matrix.to_dense().double(), matrix.tensors()["scales"].double()[:, None]
    error, live = (exact - rounded).abs(), exact != 0
    return Loss(
        values=int(live.sum()),
        max_error=float(error.max()),
        relative_error=float((error[live] / exact[live].abs()).max()),
        energy=float(error.square().sum() / exact.square().sum()),
        clipped=int(((exact.abs() > 464 * scales) & (rounded.abs() == 448 * scales)).sum()),
        zeroed=int((live & (rounded == 0)).sum()),
        dense_bytes=2 * w.numel(),
        sparse_bytes=matrix.nbytes,
    )


class Largest(TorchDispatchMode):
    """The most bytes of a tensor that an operation made."""

    most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor):
            self.most = max(self.most, out.numel() * out.element_size())
        return out


@pytest.mark.parametrize("at_once", [1, 100, 3000, 1 << 20])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_loss_is_that_of_the_plain_formula_however_many_rows_are_taken_at_once(
    monkeypatch: pytest.MonkeyPatch, at_once: int, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(quantization, "_AT_ONCE", at_once)
    w = two_of_four(97, 100, dtype) * torch.randn(97, 1).mul(4).exp().to(dtype)
    w[5], w[96, 0], w[90, 4] = 0, 6e4, 2.0**-10
    matrix = ScaledNMMatrix.quantize(w)
    found, expected = loss_of(w, matrix), plain_loss(w, matrix)
    assert expected.zeroed
    assert found.energy == pytest.approx(expected.energy, rel=1e-12)
    assert replace(found, energy=expected.energy) == expected


def test_the_loss_of_a_large_weight_is_counted_in_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantization, "_AT_ONCE", 4096)
    w = two_of_four(1024, 512)
    matrix = ScaledNMMatrix.quantize(w)
    with Largest() as seen:
        loss_of(w, matrix)
    assert 0 < seen.most <= 8 * 4096


@pytest.mark.parametrize(("n", "k"), [(0, 8), (8, 0), (4, 8)])
def test_a_weight_without_values_loses_nothing(n: int, k: int) -> None:
    w = torch.zeros(n, k).bfloat16()
    loss = loss_of(w, ScaledNMMatrix.quantize(w))
    assert (loss.values, loss.max_error, loss.relative_error, loss.energy, loss.zeroed) == (0, 0, 0, 0, 0)


def test_the_loss_of_normal_weights_is_that_of_four_significant_bits() -> None:
    w = two_of_four(256, 512)
    loss = loss_of(w, ScaledNMMatrix.quantize(w))
    assert 0 < loss.energy < 2.0**-10
    assert loss.max_error <= 2.0**-4 * float(w.abs().max())
    assert (loss.clipped, loss.values) == (0, int((w != 0).sum()))


def test_nothing_is_lost_a_second_time() -> None:
    model = Model()
    ajour.quantize(model)
    ajour.revert(model)
    assert [type(layer) for layer in model.children()] == [nn.Linear] * 3
    again = ajour.quantize(model)
    assert all(
        (loss.max_error, loss.energy, loss.clipped, loss.zeroed) == (0, 0, 0, 0) for loss in again.losses.values()
    )
    x = torch.randn(3, 32).bfloat16()
    assert torch.equal(rounded(rounded(x)), rounded(x))


def test_the_report_prints_every_layer_and_is_json() -> None:
    done = ajour.quantize(Model())
    text = str(done)
    assert all(word in text for word in ("layer", "max error", "energy lost", "clipped", "became 0", "up", "down"))
    assert "head: left as it is: row 0, columns 0 to 3" in text
    data = json.loads(done.to_json())
    assert data["losses"]["up"]["clipped"] == 0
    assert set(data["skipped"]) == {"head"}


def test_layers_are_chosen_by_name_and_named_ones_must_be_possible() -> None:
    model = Model()
    assert set(ajour.quantize(model, layers="up").losses) == {"up"}
    before = state_of(model)
    for layers, expected in (
        ("head", "layer 'head' can't be quantized: row 0, columns 0 to 3"),
        ("up", "layer 'up' can't be quantized: it is quantized already"),
        (["down", "head"], "layer 'head' can't be quantized"),
        ("nothing*", "no layer matches 'nothing\\*'"),
        ("h*", "there is nothing to quantize; head: row 0"),
    ):
        with pytest.raises(ConversionError, match=expected):
            ajour.quantize(model, layers=layers)
        assert state_of(model) == before
    assert set(ajour.quantize(model, layers=lambda name, module: name == "down").losses) == {"down"}


def test_a_float32_model_and_weights_with_nan_are_refused() -> None:
    with pytest.raises(ConversionError, match="nothing to quantize; up: ScaledNMMatrix holds 2:4 in bfloat16 or"):
        ajour.quantize(Model().float())
    model = Model()
    with torch.no_grad():
        model.up.weight[3] = torch.where(model.up.weight[3] != 0, torch.nan, 0.0)
    done = ajour.quantize(model)
    assert "can't hold NaN or Inf, found one in row 3" in done.skipped["up"]


def test_converted_layers_keep_their_activation_and_bias() -> None:
    w, bias, x = two_of_four(16, 32), torch.randn(16).bfloat16(), torch.randn(7, 32).bfloat16()
    layer = NMLinear(NMMatrix.from_dense(w, NM(2, 4)), bias, activation="silu")
    done = ajour.quantize(layer)
    assert isinstance(done.model, ScaledNMLinear)
    dense = ScaledNMMatrix.quantize(w).to_dense()
    truth(rounded(x), dense, bias, None, "silu").check(done.model(x).detach(), "silu")
    assert list(done.losses) == [""]


def test_no_plan_and_no_conversion_rounds_a_weight() -> None:
    """A plan that names the op by hand is refused for a weight that would lose something, and taken for another."""
    model = Model()
    plan = plan_for(model, NM(2, 4), skip=("head",))
    by_hand = type(plan).from_json(plan.to_json().replace("nm_linear", "scaled_nm_linear"))
    with pytest.raises(ConversionError, match=r"layer 'up': .*is none .*ajour\.quantize rounds"):
        ajour.convert(model, by_hand)
    ajour.revert(ajour.quantize(model).model)
    ajour.convert(model, by_hand)
    assert isinstance(model.up, ScaledNMLinear)


def test_files_hold_quantized_layers_and_give_them_back(tmp_path: Path) -> None:
    model, x = ajour.quantize(Model()).model, torch.randn(5, 32).bfloat16()
    ajour.save(model, tmp_path / "model.safetensors")
    for skeleton in (Model(), Model().to("meta")):
        loaded = ajour.load(tmp_path / "model.safetensors", skeleton)
        assert [type(layer) for layer in loaded.children()] == [ScaledNMLinear, ScaledNMLinear, nn.Linear]
        assert torch.equal(bits(loaded(x).detach()), bits(model(x).detach()))
    state = model.state_dict()
    assert {"up.values", "up.positions", "up.scales", "up.bias", "down.values"} <= set(state)
    other = ajour.quantize(Model()).model
    other.load_state_dict(state)
    assert torch.equal(bits(other(x).detach()), bits(model(x).detach()))


def test_the_module_tells_what_it_is_and_refuses_what_it_can_not_be() -> None:
    w = two_of_four(16, 32)
    layer = ScaledNMLinear(ScaledNMMatrix.quantize(w))
    assert "2:4" in repr(layer)
    assert layer.weight.dtype == torch.bfloat16
    assert torch.equal(bits(layer.weight.clone()), bits(ScaledNMMatrix.quantize(w).to_dense()))
    half = layer.half()
    assert half.matrix().dtype == torch.float16
    with pytest.raises(PatternError, match="in bfloat16 or float16, not in float32"):
        half.float()
    with pytest.raises(KernelError, match="ScaledNMLinear is for inference, e4m3 is too coarse to be trained"):
        ScaledNMLinear(ScaledNMMatrix.quantize(w), trainable=True)
    with pytest.raises(KernelError, match="ScaledNMLinear holds a ScaledNMMatrix, found a NMMatrix"):
        ScaledNMLinear(NMMatrix.from_dense(w, NM(2, 4)))
