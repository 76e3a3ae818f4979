"""A projection applied: all that the report says and no more, and orders of in features that are exactly undone."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import ajour
from ajour.detect import detect
from ajour.nn import NMLinear, Permuted
from ajour.terms.errors import ConversionError, FileError
from ajour.terms.pattern import NM, Block


def model() -> nn.Sequential:
    made = nn.Sequential(nn.Linear(48, 64), nn.GELU(), nn.Dropout(), nn.Linear(64, 32), nn.LayerNorm(32)).eval()
    with torch.no_grad():
        for place in (0, 3):
            made[place].weight.mul_(torch.rand(made[place].in_features))
    return made


def zeroed_by_hand(dense: nn.Sequential, report: ajour.projection.Projection) -> nn.Sequential:
    """What the projected model computes, without any order: the same places zeroed in a copy."""
    twin = copy.deepcopy(dense)
    for row in report.layers:
        order = torch.tensor(row.order or range(row.shape[1]))
        w = twin.get_submodule(row.name).weight.data
        groups = w[:, order].view(len(w), -1, 4)
        groups.scatter_(-1, groups.abs().topk(2, largest=False).indices, 0.0)
        w[:, order] = groups.flatten(1)
    return twin


def test_applied_every_layer_fits_and_the_parameters_stay() -> None:
    dense = model()
    weight = dense[0].weight
    report = ajour.project(dense, NM(2, 4))
    twin = zeroed_by_hand(dense, report)
    assert report.apply(dense) is dense
    assert dense[0].weight is weight
    assert torch.equal(dense[0].weight, twin[0].weight)
    assert all(detect(dense[place].weight).keeps[4] == 2 for place in (0, 3))


def test_an_order_is_exactly_undone() -> None:
    dense, x = model(), torch.randn(20, 48)
    report = ajour.project(dense, NM(2, 4), permute=True)
    first, second = report.layers
    assert (first.producer, second.producer) == (None, "0")
    twin = zeroed_by_hand(dense, report)
    report.apply(dense)
    assert isinstance(dense[0], Permuted)
    assert type(dense[3]) is nn.Linear, "the rows of layer 0 are in its order, so nothing is left to do at run time"
    assert detect(dense[0].layer.weight).keeps[4] == detect(dense[3].weight).keeps[4] == 2
    torch.testing.assert_close(dense(x), twin(x))
    assert torch.equal(dense[0].weight, twin[0].weight[torch.tensor(second.order)])


def test_a_permuted_model_is_planned_converted_verified_saved_loaded_exported_and_reverted(tmp_path: Path) -> None:
    dense, x = model(), torch.randn(20, 48)
    report = ajour.project(dense, NM(2, 4), permute=True)
    twin = zeroed_by_hand(dense, report)
    report.apply(dense)
    reference = copy.deepcopy(dense)
    plan = ajour.plan(dense, x, margin=float("-inf"), progress=False)
    assert [choice.layer for choice in plan.choices] == ["0.layer", "3"]
    ajour.convert(dense, plan)
    assert type(dense[0].layer) is type(dense[3]) is NMLinear
    assert dense[0].layer.activation == "gelu", "the activation behind a permuted layer is folded into it too"
    with torch.no_grad():
        torch.testing.assert_close(dense(x), twin(x))
    assert ajour.verify(dense, reference, x).ok
    ajour.save(dense, tmp_path / "model.safetensors")
    for skeleton in (model(), copy.deepcopy(reference), _on_meta()):
        loaded = ajour.load(tmp_path / "model.safetensors", skeleton)
        assert torch.equal(loaded(x), dense(x))
    exported = torch.export.export(dense, (x,), dynamic_shapes=({0: torch.export.Dim("rows", min=2, max=64)},))
    torch.testing.assert_close(exported.module()(torch.cat((x, x))), twin(torch.cat((x, x))))
    assert torch.equal(ajour.revert(dense)[0].layer.weight, reference[0].layer.weight)


def _on_meta() -> nn.Module:
    with torch.device("meta"):
        return nn.Sequential(nn.Linear(48, 64), nn.GELU(), nn.Dropout(), nn.Linear(64, 32), nn.LayerNorm(32)).eval()


def test_a_permuted_layer_shows_the_weight_that_it_stands_for() -> None:
    dense, x = model(), torch.randn(3, 48)
    report = ajour.project(dense, NM(2, 4), permute=True, layers="0")
    twin = zeroed_by_hand(dense, report)
    report.apply(dense)
    wrapper = dense[0]
    assert (wrapper.in_features, wrapper.out_features) == (48, 64)
    assert torch.equal(wrapper.weight, twin[0].weight)
    torch.testing.assert_close(nn.functional.linear(x, wrapper.weight, wrapper.bias), wrapper(x))


def test_a_model_that_is_one_layer_comes_back_wrapped(tmp_path: Path) -> None:
    layer, x = nn.Linear(32, 16), torch.randn(5, 32)
    with torch.no_grad():
        layer.weight.mul_(torch.rand(32))
    report = ajour.project(layer, NM(2, 4), permute=True)
    made = report.apply(layer)
    assert isinstance(made, Permuted)
    made = ajour.convert(made, ajour.plan(made, x, margin=float("-inf"), progress=False))
    ajour.save(made, tmp_path / "layer.safetensors")
    assert torch.equal(ajour.load(tmp_path / "layer.safetensors", nn.Linear(32, 16))(x), made(x))


def test_torch_transformer_layers_run_on_their_rows_in_order() -> None:
    layer = nn.TransformerEncoderLayer(32, 4, 64, activation="gelu", batch_first=True).eval()
    x = torch.randn(2, 7, 32)
    report = ajour.project(layer, NM(2, 4), permute=True, layers=["linear1", "linear2"])
    twin = copy.deepcopy(layer)
    report.apply(layer)
    assert report.layers[1].producer == "linear1"
    for row in report.layers:
        w, order = twin.get_submodule(row.name).weight.data, torch.tensor(row.order)
        groups = w[:, order].view(len(w), -1, 4)
        groups.scatter_(-1, groups.abs().topk(2, largest=False).indices, 0.0)
        w[:, order] = groups.flatten(1)
    with torch.no_grad():  # with and without its fast path, which reads the weight of the wrapper
        torch.testing.assert_close(layer(x), twin(x))
        torch.testing.assert_close(layer.train(False)(x.requires_grad_()), twin(x))


def test_only_the_layers_asked_for_are_projected() -> None:
    dense = model()
    before = dense[3].weight.detach().clone()
    report = ajour.project(dense, NM(2, 4))
    report.apply(dense, layers=[row.name for row in report.layers if row.name == "0"])
    assert torch.equal(dense[3].weight, before)
    assert detect(dense[0].weight).keeps[4] == 2


def test_blocks_with_stray_values_lose_them() -> None:
    dense = ajour.prune(model(), Block(16, 16), density=0.5)
    clean = dense[0].weight.detach().clone()
    place = (clean == 0).nonzero()[7]
    dense[0].weight.data[place[0], place[1]] = 1e-4
    ajour.project(dense, Block(16, 16)).apply(dense)
    assert torch.equal(dense[0].weight, clean)


@pytest.mark.parametrize("change", ["weight", "shape", "name"])
def test_a_report_of_other_weights_is_refused_and_nothing_changes(change: str) -> None:
    dense = model()
    report = ajour.project(dense, NM(2, 4), permute=True)
    if change == "weight":
        dense[3].weight.data[0] *= 2
        match = "layer '3' has changed since the report was made; project again"
    elif change == "shape":
        dense[3] = nn.Linear(64, 16)
        match = "layer '3': the report saw 32x64 float32, here it is 16x64 float32"
    else:
        dense[3] = nn.Identity()
        match = "the report is of another model: '3' is not in this one"
    before = {name: tensor.clone() for name, tensor in dense.state_dict().items()}
    with pytest.raises(ConversionError, match=match):
        report.apply(dense)
    assert list(before) == list(dense.state_dict())
    assert all(torch.equal(before[name], tensor) for name, tensor in dense.state_dict().items())


def test_a_layer_outside_of_the_report_is_refused() -> None:
    dense = model()
    with pytest.raises(ConversionError, match="layer '3' is not in this report; project it too"):
        ajour.project(dense, NM(2, 4), layers="0").apply(dense, layers="3")


def _break_order(change: str) -> Tensor:
    order = torch.randperm(48)
    return {"twice": order.clone().fill_(3), "dtype": order.int(), "shape": order[:40].argsort()}[change]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ("twice", "'0.ajour_order' is no order of in features: expected each of 0 to 47 once"),
        ("dtype", r"'0.ajour_order' is no order of in features: expected int64 \[k\], found int32 \(48,\)"),
        ("shape", "it holds '0' with 40 in features in another order, this model has no such layer there"),
    ],
)
def test_a_file_with_an_order_that_is_none_is_refused_and_the_skeleton_stays(
    change: str, match: str, tmp_path: Path
) -> None:
    dense = model()
    ajour.project(dense, NM(2, 4), permute=True, layers="0").apply(dense)
    dense[0].ajour_order = _break_order(change)
    ajour.save(dense, tmp_path / "model.safetensors")
    skeleton = model()
    with pytest.raises(FileError, match=match):
        ajour.load(tmp_path / "model.safetensors", skeleton)
    assert type(skeleton[0]) is nn.Linear


def test_a_skeleton_is_as_it_was_when_loading_fails_behind_the_order(tmp_path: Path) -> None:
    dense = model()
    ajour.project(dense, NM(2, 4), permute=True, layers="0").apply(dense)
    ajour.save(dense, tmp_path / "model.safetensors")
    skeleton = model()
    skeleton[4] = nn.Identity()
    with pytest.raises(FileError, match="the model lacks"):
        ajour.load(tmp_path / "model.safetensors", skeleton)
    assert type(skeleton[0]) is nn.Linear


class Aliased(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = model()
        self.steps = [self.body[0], self.body[3]]

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.steps[0](x)
        return self.body(x) + self.steps[1](h)


def test_an_alias_of_a_wrapped_layer_runs_the_projected_weight_in_its_own_order() -> None:
    dense, x = Aliased().eval(), torch.randn(20, 48)
    weights = [step.weight for step in dense.steps]
    report = ajour.project(dense, NM(2, 4), permute=True)
    assert all(row.order is not None and row.producer is None for row in report.layers)
    twin = zeroed_by_hand(dense, report)
    report.apply(dense)
    torch.testing.assert_close(dense(x), twin(x))
    for step, weight, kept in zip((0, 3), weights, dense.steps, strict=True):
        assert kept.weight is weight
        assert dense.body[step].layer.weight is not weight
        assert dense.body[step].layer.bias is kept.bias


@pytest.mark.parametrize("alone", [False, True])
def test_projecting_twice_leaves_one_order_that_loads(alone: bool, tmp_path: Path) -> None:
    dense, x = (nn.Linear(48, 64) if alone else model()), torch.randn(20, 48)
    dense = ajour.project(dense, NM(6, 8), permute=True).apply(dense)
    name = "layer" if alone else "0.layer"
    report = ajour.project(dense, NM(2, 4), permute=True)
    assert next(row for row in report.layers if row.name == name).order is not None
    twin = zeroed_by_hand(dense, report)
    dense = report.apply(dense)
    wrapper = dense if alone else dense[0]
    assert isinstance(wrapper, Permuted)
    assert type(wrapper.layer) is nn.Linear
    assert detect(wrapper.layer.weight).keeps[4] == 2
    torch.testing.assert_close(dense(x), twin(x))
    ajour.save(dense, tmp_path / "model.safetensors")
    skeleton = nn.Linear(48, 64) if alone else model()
    assert torch.equal(ajour.load(tmp_path / "model.safetensors", skeleton)(x), dense(x))


@pytest.mark.parametrize("converted", [False, True])
@pytest.mark.parametrize("alone", [False, True])
def test_reading_a_file_undoes_the_order(alone: bool, converted: bool, tmp_path: Path) -> None:
    dense, x = (nn.Linear(48, 64) if alone else model()), torch.randn(20, 48)
    names = set(dense.state_dict())
    report = ajour.project(dense, NM(2, 4), permute=True, layers="" if alone else "0")
    twin = zeroed_by_hand(dense, report)
    made = report.apply(dense)
    if converted:
        made = ajour.convert(made, ajour.plan(made, x, margin=float("-inf"), progress=False))
    ajour.save(made, tmp_path / "model.safetensors")
    read = ajour.read(tmp_path / "model.safetensors")
    assert set(read) == names
    assert all(torch.equal(read[name], tensor) for name, tensor in twin.state_dict().items())
    skeleton = nn.Linear(48, 64) if alone else model()
    filled = ajour.read(tmp_path / "model.safetensors", skeleton)
    assert torch.equal(filled(x), twin(x))


def test_reading_an_order_that_is_none_is_refused(tmp_path: Path) -> None:
    dense = model()
    ajour.project(dense, NM(2, 4), permute=True, layers="0").apply(dense)
    dense[0].ajour_order = _break_order("twice")
    ajour.save(dense, tmp_path / "model.safetensors")
    with pytest.raises(FileError, match=r"0\.ajour_order is no order of in features"):
        ajour.read(tmp_path / "model.safetensors")
