"""load: damaged files and other models are refused by name, and the model is left as it is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from files import rewritten
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small import Small, assert_same_state, converted, state
from torch import Tensor, nn

from ajour.importers.saved import read_saved
from ajour.io import load, save
from ajour.layers import find_layers
from ajour.terms.errors import AjourError, FileError


class Renamed(Small):
    def __init__(self) -> None:
        super().__init__()
        self.other = self.mix
        del self.mix


def with_(change: Callable[[Any], object]) -> nn.Module:
    model = Small()
    change(model)
    return model


@pytest.mark.parametrize(
    ("skeleton", "message"),
    [
        (lambda: Renamed(), "it holds the layer 'mix', this model has none there"),
        (
            lambda: with_(lambda m: setattr(m, "up", nn.Linear(64, 127))),
            "'up': the file holds 128x64, the model 127x64",
        ),
        (lambda: with_(lambda m: setattr(m, "up", nn.Linear(64, 128, bias=False))), "'up': the file holds a bias"),
        (lambda: with_(lambda m: setattr(m, "mix", nn.Linear(64, 64))), "'mix': the file holds no bias"),
        (
            lambda: Small(torch.float16),
            r"'up': the file holds float32, the model float16; call model.to\(torch.float32\)",
        ),
        (lambda: with_(lambda m: setattr(m, "act", nn.ReLU())), "'up' took over the activation 'gelu', which"),
        (
            lambda: with_(lambda m: setattr(m, "extra", nn.Linear(4, 4))),
            "the file lacks 2 tensors: extra.bias, extra.weight",
        ),
        (lambda: with_(lambda m: delattr(m, "steps")), "the model lacks 1 tensors: steps"),
        (
            lambda: with_(lambda m: setattr(m, "norm", nn.LayerNorm(32))),
            r"'norm.weight': the file holds float32 \(64,\)",
        ),
        (lambda: with_(lambda m: m.norm.double()), "'norm.weight': the file holds float32.*the model float64"),
        (lambda: with_(lambda m: m.mix.register_forward_hook(print)), "'mix': it carries the hook print"),
        (lambda: with_(lambda m: setattr(m.norm, "bias", m.norm.weight)), "tied in the model, not in the file"),
    ],
)
def test_another_model_is_refused_by_name_and_left_as_it_is(tmp_path: Path, skeleton: Any, message: str) -> None:
    save(converted(), tmp_path / "m.safetensors")
    model = skeleton()
    before = state(model)
    with pytest.raises(FileError, match=message):
        load(tmp_path / "m.safetensors", model)
    assert_same_state(model, before)


def test_a_converted_skeleton_does_not_take_a_dense_file(tmp_path: Path) -> None:
    save(Small(), tmp_path / "m.safetensors")
    with pytest.raises(FileError, match="holds the layer 'up' dense"):
        load(tmp_path / "m.safetensors", converted())


def edit(name: str, place: int, value: int) -> Callable[[dict[str, Tensor], dict[str, str]], object]:
    return lambda tensors, metadata: tensors[name].view(-1).__setitem__(place, value)


def again(name: str, place: int, other: int) -> Callable[[dict[str, Tensor], dict[str, str]], object]:
    return lambda tensors, metadata: tensors[name].__setitem__(place, tensors[name][other].item())


def flipped(name: str, count: int) -> Callable[[dict[str, Tensor], dict[str, str]], object]:
    return lambda tensors, metadata: tensors[name][:count].copy_(tensors[name][:count].flip(0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (edit("up.positions", 5, 0xFF), "layer 'up': positions"),
        (edit("down.columns", 0, 1000), "layer 'down': block 0 at row 0, column 1000 lies outside the 4x8"),
        (edit("down.columns", 0, -1), "layer 'down': block 0 at row 0, column -1 lies outside the 4x8 grid"),
        (edit("down.rows", 0, 4), "layer 'down': .*block 0 at row 4, column . lies outside the 4x8 grid"),
        (again("down.columns", 1, 0), "layer 'down': .*block 1 overlaps or precedes the one before it"),
        (flipped("down.columns", 2), "layer 'down': .*block 1 overlaps or precedes the one before it"),
        (edit("down.row_offsets", -1, 10**6), "layer 'down': row_offsets: the last entry is 1000000, but there are 8"),
        (edit("down.row_offsets", -1, 7), "layer 'down': row_offsets: the last entry is 7, but there are 8 blocks"),
        (edit("down.column_offsets", -1, 9), "layer 'down': column_offsets: the last entry is 9, but there are 8"),
        (edit("down.order", 1, 0), "layer 'down': order: entry 1 is 0, expected "),
        (
            lambda t, m: m.update(layers=m["layers"].replace("[64, 128]", "[60, 128]")),
            "layer 'down': blocks: block . holds a non-zero beyond the 60x128 weight",
        ),
        (edit("mix.offsets", 1, 2**30), "layer 'mix'"),
        (edit("mix.bitmaps", 0, -1), "layer 'mix'"),
        (lambda t, m: t.pop("up.values"), "layer 'up'.*values is missing"),
        (lambda t, m: t.pop("up.bias"), "layer 'up': its bias is missing"),
        (lambda t, m: t.update({"up.bias": torch.randn(3)}), "layer 'up': expected a bias of"),
        (lambda t, m: t.update({"up.values": t["up.values"].half()}), "its values should be float32"),
        (lambda t, m: t.pop("shift"), "does not hold the buffer 'shift' once"),
        (lambda t, m: t.update({"head.weight": torch.randn(2)}), "'head.weight' is tied to 'embed.weight'"),
        (lambda t, m: t.update({"new": torch.randn(2)}), "the model lacks 1 tensors: new"),
        (lambda t, m: m.update(version="2"), r"is of version '2', this ajour reads version 1; update ajour"),
        (lambda t, m: m.update(version="one"), "is of version 'one'"),
        (lambda t, m: m.update(version="9" * 5000), "is of version '9{40}', this ajour reads version 1"),
        (lambda t, m: m.update(format="pt"), r"was not written by ajour.save \(its format is 'pt'\)"),
        (lambda t, m: m.clear(), "its format is 'not named'"),
        (lambda t, m: m.update(layers="{"), "the metadata 'layers' are missing or no JSON"),
        (lambda t, m: m.update(layers="[]"), "'layers' should be a dict, found list"),
        (lambda t, m: m.update(layers=m["layers"].replace("nm_linear", "xx_linear")), "unknown op 'xx_linear'"),
        (lambda t, m: m.update(layers=m["layers"].replace('"2:4"', '"4:2"')), "layer 'up'"),
        (lambda t, m: m.update(layers=m["layers"].replace('"2:4"', '"1:4"')), "layer 'up': values"),
        (lambda t, m: m.update(layers=m["layers"].replace("[128, 64]", "[128, 1e9]")), "shape should be two sizes"),
        (lambda t, m: m.update(layers=m["layers"].replace("[128, 64]", "[256, 32]")), "layer 'up'"),
        (lambda t, m: m.update(layers=m["layers"].replace('"gelu"', '"tanh"')), "activation"),
        (lambda t, m: m.update(plan="{}"), "its plan is damaged"),
        (lambda t, m: m.update(plan=""), "its plan is damaged"),
    ],
)
def test_damaged_files_are_refused_by_name_and_the_model_is_left_as_it_is(
    tmp_path: Path, change: Callable[[dict[str, Tensor], dict[str, str]], object], message: str
) -> None:
    path = tmp_path / "m.safetensors"
    save(converted(), path)
    rewritten(path, change)
    model = Small()
    before = state(model)
    with pytest.raises(FileError, match=message):
        load(path, model)
    assert_same_state(model, before)
    assert [layer.kind for layer in find_layers(model)] == ["Linear"] * 4


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_flipped_bytes_load_as_valid_or_raise(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "m.safetensors"
    if not (tmp_path / "whole").exists():
        save(converted(), tmp_path / "whole")
    whole = bytearray((tmp_path / "whole").read_bytes())
    header = 8 + int.from_bytes(whole[:8], "little")
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, header - 1) | st.integers(header, len(whole) - 1))
        whole[place] = data.draw(st.integers(0, 255))
    path.write_bytes(whole)
    try:
        saved = read_saved(path)
    except AjourError:
        return
    for layer in saved.layers.values():
        layer.matrix.validate()
        assert layer.matrix.to_dense().shape == layer.matrix.shape


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_truncated_files_are_refused(tmp_path: Path, share: float) -> None:
    path = tmp_path / "m.safetensors"
    save(converted(), path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(FileError, match="damaged or no safetensors file"):
        load(path, Small())
    with pytest.raises(FileError, match="does not exist"):
        load(tmp_path / "gone", Small())
