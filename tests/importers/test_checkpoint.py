"""Checkpoints: lazily read, damaged ones refused by name, nothing unpickled."""

from __future__ import annotations

import contextlib
import json
import pickle
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from ajour.importers import open_checkpoint
from ajour.importers.weights import find_weights
from ajour.terms.errors import FileError

pytestmark = pytest.mark.filterwarnings("ignore:Detected pickle protocol")
TENSORS = {"a.weight": torch.randn(32, 16), "b.bias": torch.arange(4)}


def held(path: Path) -> dict[str, Tensor]:
    return dict(open_checkpoint(path))


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor] = TENSORS) -> None:
    assert set(found) == set(expected)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_single_files_are_known_by_their_content_not_their_name(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "x.bin")
    torch.save(TENSORS, tmp_path / "x.safetensors")
    torch.save(TENSORS, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    for name in ("x.bin", "x.safetensors", "old.pt"):
        assert_same(held(tmp_path / name))
    assert open_checkpoint(tmp_path / "x.bin").shapes == {"a.weight": (32, 16), "b.bias": (4,)}


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model", "module"])
def test_state_dicts_one_level_down_are_found(tmp_path: Path, key: str) -> None:
    torch.save({"epoch": 3, "step": torch.tensor(5), key: TENSORS}, tmp_path / "x.pt")
    assert_same(held(tmp_path / "x.pt"))


def test_folders_with_one_file_loose_files_or_shards(tmp_path: Path) -> None:
    for kind in ("one", "loose", "sharded", "bin"):
        (tmp_path / kind).mkdir()
    (tmp_path / "one" / "config.json").write_text('{"model_type": "x"}')
    save_file(TENSORS, tmp_path / "one" / "model.safetensors")
    save_file({"a.weight": TENSORS["a.weight"]}, tmp_path / "loose" / "p1.safetensors")
    save_file({"b.bias": TENSORS["b.bias"]}, tmp_path / "loose" / "p2.safetensors")
    save_file({"a.weight": TENSORS["a.weight"]}, tmp_path / "sharded" / "m-1.safetensors")
    save_file({"b.bias": TENSORS["b.bias"]}, tmp_path / "sharded" / "m-2.safetensors")
    places = {"a.weight": "m-1.safetensors", "b.bias": "m-2.safetensors"}
    (tmp_path / "sharded" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    torch.save(TENSORS, tmp_path / "bin" / "pytorch_model.bin")
    for kind in ("one", "loose", "sharded", "bin"):
        assert_same(held(tmp_path / kind))
    assert open_checkpoint(tmp_path / "one").config == {"model_type": "x"}


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({"weight_map": {"a.weight": "gone.safetensors"}}, "gone.safetensors is missing; the folder's index lists it"),
        ({"weight_map": {"c": "m.safetensors"}}, "the tensor c is missing"),
        ({"weight_map": {"a.weight": "../m.safetensors"}}, "is no file name of this folder"),
        ({"weight_map": ["a"]}, "has no weight_map"),
        ([], "expected a JSON object, found list"),
        ("{", "is no readable JSON"),
    ],
)
def test_broken_indices_name_the_shard_or_tensor(tmp_path: Path, index: object, message: str) -> None:
    save_file(TENSORS, tmp_path / "m.safetensors")
    text = index if isinstance(index, str) else json.dumps(index)
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(FileError, match=message):
        open_checkpoint(tmp_path)


def test_missing_and_unknown_files(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="does not exist; expected a Hugging Face folder or a checkpoint file"):
        open_checkpoint(tmp_path / "gone")
    with pytest.raises(FileError, match=r"holds no \*.safetensors and no pytorch_model.bin"):
        open_checkpoint(tmp_path)
    (tmp_path / "text").write_text("hello, this is no checkpoint")
    with pytest.raises(FileError, match="neither a safetensors file nor a torch file; its first bytes are b'hello, t'"):
        open_checkpoint(tmp_path / "text")
    (tmp_path / "empty").write_bytes(b"")
    with pytest.raises(FileError, match="neither a safetensors file nor a torch file"):
        open_checkpoint(tmp_path / "empty")
    torch.save({"epoch": 3}, tmp_path / "none.pt")
    with pytest.raises(FileError, match="holds no state_dict"):
        open_checkpoint(tmp_path / "none.pt")
    torch.save(torch.randn(3), tmp_path / "tensor.pt")
    with pytest.raises(FileError, match="holds no state_dict"):
        open_checkpoint(tmp_path / "tensor.pt")


class Bomb:
    """Leaves a file behind if it is ever unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (str(self.path),)  # type: ignore[return-value]


@pytest.mark.parametrize("legacy", [False, True])
def test_objects_are_never_unpickled(tmp_path: Path, legacy: bool) -> None:
    torch.save({"w": Bomb(tmp_path / "bang")}, tmp_path / "x.pt", _use_new_zipfile_serialization=not legacy)
    (tmp_path / "raw.pt").write_bytes(pickle.dumps(Bomb(tmp_path / "bang")))
    torch.save(torch.nn.Linear(4, 4), tmp_path / "module.pt")
    for name in ("x.pt", "raw.pt", "module.pt"):
        with pytest.raises(FileError, match=r"ajour never unpickles them.*load it yourself and pass the model"):
            open_checkpoint(tmp_path / name)
    assert not (tmp_path / "bang").exists()


@pytest.mark.parametrize("kind", ["safetensors", "pt"])
def test_truncated_files_are_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"x.{kind}"
    save_file(TENSORS, path) if kind == "safetensors" else torch.save(TENSORS, path)
    whole = path.read_bytes()
    for size in (9, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(FileError):
            open_checkpoint(path)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), kind=st.sampled_from(["safetensors", "pt"]))
def test_flipped_bytes_never_do_worse_than_a_file_error(tmp_path: Path, data: st.DataObject, kind: str) -> None:
    path = tmp_path / f"x.{kind}"
    save_file(TENSORS, path) if kind == "safetensors" else torch.save(TENSORS, path)
    whole = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, min(len(whole), 900) - 1) | st.integers(0, len(whole) - 1))
        whole[place] = data.draw(st.integers(0, 255))
    path.write_bytes(whole)
    with contextlib.suppress(FileError):
        for weight in find_weights(open_checkpoint(path)):
            weight.read()
