"""inspect: patterns from the values, of models and files alike, and nothing is changed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils import prune as torch_prune

from ajour.conversion import convert
from ajour.detect import detect
from ajour.inspection import Inspection, inspect
from ajour.io import save
from ajour.pruning import prune
from ajour.terms.errors import FileError
from ajour.terms.pattern import NM, Block, Dense, Unstructured
from hand_plan import hand_plan


def several() -> nn.Sequential:
    model = nn.Sequential(*(nn.Linear(128, 128) for _ in range(4)), nn.LSTM(32, 32))
    prune(model, NM(2, 4), layers=["0"])
    prune(model, Block(32, 32), density=0.25, layers=["1"])
    torch_prune.random_unstructured(model[2], "weight", 0.9)
    return model


def test_patterns_are_found_from_the_values() -> None:
    inspection = inspect(several())
    assert [str(layer.pattern) for layer in inspection.layers[:4]] == ["2:4", "block 32x32", "unstructured", "dense"]
    first, second, third, fourth, *recurrent = inspection.layers
    assert first.patterns[0] == NM(2, 4)
    assert first.patterns[-1] == fourth.pattern == Dense()
    assert first.density == 0.5
    assert second.zero_rows == detect(several()[1].weight).zero_rows or second.zero_rows is not None
    assert (third.mask_source, third.pattern) == ("torch.nn.utils.prune", Unstructured())
    assert all(layer.kind == "LSTM" and layer.reason for layer in recurrent)


def test_zero_rows_and_columns_are_counted() -> None:
    model = nn.Sequential(nn.Linear(32, 48))
    with torch.no_grad():
        model[0].weight[[3, 7]] = 0.0
        model[0].weight[:, 5] = -0.0
    (layer,) = inspect(model).layers
    assert (layer.zero_rows, layer.zero_cols) == (2, 1)


def test_a_label_is_never_trusted() -> None:
    """1:4 means one kept to some tools and one pruned to others; the zeros decide."""
    model = nn.Sequential(nn.Linear(64, 64))
    prune(model, NM(3, 4))
    (layer,) = inspect(model).layers
    assert NM(3, 4) in layer.patterns
    assert NM(1, 4) not in layer.patterns


def test_a_model_and_its_file_give_the_same_answer(tmp_path: Path) -> None:
    model = several()[:3]
    torch_prune.remove(model[2], "weight")
    save_file(model.state_dict(), tmp_path / "x.safetensors")
    torch.save(model.state_dict(), tmp_path / "x.pt")
    expected = inspect(model)
    for name in ("x.safetensors", "x.pt"):
        assert inspect(tmp_path / name) == expected
    assert inspect(str(tmp_path / "x.pt")) == expected


def test_a_saved_file_of_ajour_s_own_is_read(tmp_path: Path) -> None:
    model = several()[:4]
    expected = inspect(model)
    save(convert(model, hand_plan(model)), tmp_path / "m.safetensors")
    found = inspect(tmp_path / "m.safetensors")
    assert [(layer.name, layer.patterns) for layer in found.layers] == [
        (layer.name, layer.patterns) for layer in expected.layers
    ]
    assert [layer.mask_source for layer in found.layers] == ["ajour", "ajour", "ajour", None]


def test_a_converted_model_is_inspected_like_the_dense_one() -> None:
    model = several()[:4]
    before = inspect(model)
    after = inspect(convert(model, hand_plan(model)))
    assert [layer.patterns for layer in after.layers] == [layer.patterns for layer in before.layers]
    assert [layer.kind for layer in after.layers] == ["NMLinear", "BlockLinear", "BitmapLinear", "Linear"]


def test_inspecting_changes_nothing() -> None:
    model = several()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    inspect(model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_weights_without_values_or_of_other_dtypes_are_listed() -> None:
    with torch.device("meta"):
        skeleton = nn.Sequential(nn.Linear(32, 32))
    (layer,) = inspect(skeleton).layers
    assert (layer.shape, layer.pattern, layer.density) == ((32, 32), None, None)
    assert "meta device" in str(layer.reason)
    (layer,) = inspect(nn.Sequential(nn.Linear(32, 32).to(torch.float8_e5m2))).layers
    assert (layer.dtype, layer.pattern) == ("float8_e5m2", None)


def test_quantized_weights_in_a_file_are_listed_with_the_reason(tmp_path: Path) -> None:
    save_file({"fc.qweight": torch.randint(99, (32, 32), dtype=torch.int32)}, tmp_path / "x.safetensors")
    (layer,) = inspect(tmp_path / "x.safetensors").layers
    assert (layer.pattern, layer.reason) == (None, "its weight is int32, which no format holds")


def test_a_lost_mask_is_a_note(tmp_path: Path) -> None:
    save_file({"fc.parametrizations.weight.original": torch.randn(32, 32)}, tmp_path / "x.safetensors")
    inspection = inspect(tmp_path / "x.safetensors")
    assert "fc: a parametrization's mask is not in the file" in inspection.notes[0]
    assert "note: fc: a parametrization's mask" in str(inspection)


def test_it_prints_as_a_table_that_names_everything() -> None:
    text = str(inspect(several()))
    lines = text.split("\n")
    assert any(line.split()[:5] == ["0", "Linear", "128x128", "float32", "50.0%"] and "2:4" in line for line in lines)
    assert "4.weight_ih_l0: LSTM runs its weight_ih_l0 inside one fused call" in text
    assert "6 layers: 3 with zeros that can be used, 1 without; 2 can't be converted, 0 of them with zeros" in text
    assert "torch.nn.utils.prune" in text
    console = Console(width=200, record=True, quiet=True)
    console.print(inspect(several()))


def test_long_names_are_not_cut() -> None:
    model: nn.Module = nn.Linear(32, 32)
    for name in ("projection", "self_attention", "decoder_layer", "transformer_blocks", "language_model") * 2:
        model = nn.ModuleDict({name: model})
    (layer,) = inspect(model).layers
    assert layer.name in str(inspect(model))


def test_an_empty_model_prints() -> None:
    text = str(inspect(nn.ReLU()))
    assert text == "0 layers: nothing here that ajour could convert, as it converts linear layers"
    assert inspect(nn.ReLU()) == Inspection(())


def test_zeros_that_cannot_be_used_are_counted_too() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 64, 3), nn.Flatten(), nn.Linear(64, 64))
    for module in (model[0], model[1], model[3]):
        torch_prune.l1_unstructured(module, "weight", 0.9)
    expected = "3 layers: 1 with zeros that can be used, 0 without; 2 can't be converted, 2 of them with zeros"
    assert expected in str(inspect(model))
    for module in (model[0], model[1], model[3]):
        torch_prune.remove(module, "weight")
    assert expected in str(inspect(model))
    assert "1 layers: 1 with zeros, 0 without" in str(inspect(model[3]))


def test_a_model_without_linear_layers_is_told_that_nothing_can_be_converted() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3))
    torch_prune.l1_unstructured(model[0], "weight", 0.9)
    text = str(inspect(model))
    assert "2 layers: nothing here that ajour could convert, as it converts linear layers; 1 with zeros" in text
    assert "0 (and 1 more): Conv2d is a convolution" in text


def test_a_reason_that_many_layers_share_is_said_once() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 1), nn.LSTM(8, 32))
    text = str(inspect(model))
    assert text.count("Conv2d is a convolution") == 1
    assert "0 (and 2 more): Conv2d is a convolution; only linear layers are converted" in text
    assert "3.weight_hh_l0: LSTM runs" in text


def test_a_pruned_convolution_shows_its_mask_and_density() -> None:
    model = nn.Sequential(nn.Conv2d(64, 64, 3))
    torch_prune.l1_unstructured(model[0], "weight", 0.9)
    (layer,) = inspect(model).layers
    assert (layer.name, layer.mask_source, layer.pattern) == ("0", "torch.nn.utils.prune", Unstructured())
    assert layer.density == pytest.approx(0.1, abs=1e-4)


def test_json_holds_every_field() -> None:
    data = json.loads(inspect(several()).to_json())
    assert data["layers"][0]["pattern"] == "2:4"
    assert data["layers"][0]["patterns"][-1] == "dense"
    assert data["layers"][2]["mask_source"] == "torch.nn.utils.prune"
    assert data["notes"] == []


def test_a_damaged_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{not json at all")
    with pytest.raises(FileError, match=r"x.safetensors is damaged or no safetensors file"):
        inspect(tmp_path / "x.safetensors")


def test_what_is_neither_model_nor_path_is_refused() -> None:
    with pytest.raises(FileError, match="expected a model or the path of one, found int"):
        inspect(5)  # type: ignore[arg-type]
