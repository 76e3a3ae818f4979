"""save: one exact file, whole or not at all."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from small import Small, assert_same_state, converted, skeletons, state
from torch import nn

from ajour.conversion import convert
from ajour.conversion.recorded import plan_of
from ajour.io import load, save
from ajour.nn import SparseLinear
from ajour.planning.plan import Plan
from ajour.pruning import prune
from ajour.terms.errors import FileError
from ajour.terms.pattern import NM
from hand_plan import hand_plan


def test_the_file_holds_no_dense_copy_and_tied_tensors_once(tmp_path: Path) -> None:
    model = converted()
    save(model, tmp_path / "m.safetensors")
    with safe_open(tmp_path / "m.safetensors", "pt") as file:
        names, metadata = set(file.keys()), file.metadata()
        held = sum(file.get_tensor(name).nbytes for name in names)
    assert not names & {"up.weight", "down.weight", "mix.weight", "head.weight"}
    formats = sum(module.matrix().nbytes for module in (model.up, model.down, model.mix))
    others = (60 * 64 + 128 + 64 + 2 * 64 + 64) * 4 + 8  # embedding, biases, norm, shift, steps
    assert held == formats + others
    assert (tmp_path / "m.safetensors").stat().st_size < held + 20_000
    assert metadata["format"] == "ajour"
    assert json.loads(metadata["ties"]) == {"head.weight": "embed.weight"}
    assert Plan.from_json(metadata["plan"]) == plan_of(model)


def test_a_dense_model_is_saved_too(tmp_path: Path) -> None:
    model = Small()
    save(model, tmp_path / "m.safetensors")
    assert_same_state(load(tmp_path / "m.safetensors", Small()), state(model))


def test_a_lone_layer_is_a_model(tmp_path: Path) -> None:
    layer = prune(nn.Linear(32, 16), NM(2, 4))
    sparse = convert(layer, hand_plan(layer))
    save(sparse, tmp_path / "m.safetensors")
    loaded = load(tmp_path / "m.safetensors", nn.Linear(32, 16))
    assert isinstance(loaded, SparseLinear)
    assert_same_state(loaded, state(sparse))


def test_views_and_transposes_are_saved_by_value(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 32))
    whole = torch.randn(64, 32)
    model[0].weight, model[1].weight = nn.Parameter(whole[:32]), nn.Parameter(whole[32:].t())
    save(model, tmp_path / "m.safetensors")
    assert_same_state(
        load(tmp_path / "m.safetensors", nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 32))), state(model)
    )


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.safetensors"
    save(converted(), path)
    before = path.read_bytes()

    def fails_half_way(tensors: Any, file: Path, metadata: Any) -> None:
        file.write_bytes(b"half")
        raise RuntimeError("disk full")

    monkeypatch.setattr("ajour.io.writing.save_file", fails_half_way)
    with pytest.raises(FileError, match=r"m.safetensors was not written: disk full"):
        save(converted(), path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["m.safetensors"]


def test_what_can_t_be_saved_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"gone/m.safetensors was not written: .*No such file"):
        save(Small(), tmp_path / "gone" / "m.safetensors")
    with pytest.raises(FileError, match="'steps' is on the meta device and has no values"):
        save(skeletons()["meta"](), tmp_path / "m.safetensors")

    class Extra(nn.Linear):
        def get_extra_state(self) -> str:
            return "more"

    with pytest.raises(FileError, match="'_extra_state' in the state_dict is no tensor but str"):
        save(Extra(4, 4), tmp_path / "m.safetensors")
    assert not (tmp_path / "m.safetensors").exists()


def test_a_model_changed_after_conversion_is_saved_as_it_is(tmp_path: Path) -> None:
    model = converted().to(torch.bfloat16)
    save(model, tmp_path / "m.safetensors")
    loaded = load(tmp_path / "m.safetensors", Small(torch.bfloat16))
    assert_same_state(loaded, state(model))
    plan = plan_of(loaded)
    assert plan is not None
    assert plan["up"].dtype == "bfloat16"


def test_a_link_stays_a_link_and_what_is_no_file_is_left_alone(tmp_path: Path) -> None:
    model = nn.Linear(4, 4)
    (tmp_path / "link").symlink_to(tmp_path / "target")
    save(model, tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").stat().st_size > 0
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FileError, match=r"pipe was not written: it is no file"):
        save(model, tmp_path / "pipe")
    assert (tmp_path / "pipe").is_fifo()
