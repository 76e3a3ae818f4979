"""A Hugging Face folder as MODEL: it loads whole, or is refused in one line."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from ajour import cli
from ajour.integrations.examples import make_example
from ajour.integrations.loading import load_model
from ajour.planning.rows import call
from ajour.terms.errors import FileError, MachineError

transformers = pytest.importorskip("transformers")

SIZES = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT as save_pretrained writes it."""
    path = tmp_path_factory.mktemp("saved") / "bert"
    config = transformers.BertConfig(**SIZES, intermediate_size=64, max_position_embeddings=32)
    torch.manual_seed(0)
    transformers.BertModel(config).save_pretrained(path)
    return path


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(whole, tmp_path / "bert"))


def configured(**changes: Any) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **changes}))

    return damage


def written(name: str, data: bytes) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / name).write_bytes(data)

    return damage


def truncated(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])


def without_a_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["encoder.layer.0.output.dense.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def without_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def with_junk_of_torch(folder: Path) -> None:
    without_weights(folder)
    (folder / "pytorch_model.bin").write_bytes(b"junk")


def test_a_folder_loads_and_runs(whole: Path) -> None:
    model = load_model(str(whole), torch.bfloat16)
    assert type(model).__name__ == "BertModel"
    assert not model.training
    example = make_example(model, (2, 7))
    assert call(model, example).last_hidden_state.shape == (2, 7, 32)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


LAYER = "encoder.layer.0.intermediate.dense"


def packed(w: torch.Tensor) -> dict[str, torch.Tensor]:
    """As llm-compressor wrote 2:4, which transformers 5 has no reader for."""
    live = w != 0
    bits = (live.view(w.shape[0], -1, 8).byte() << torch.arange(8, dtype=torch.uint8)).sum(-1, dtype=torch.uint8)
    shape = torch.tensor([[side] for side in w.shape])
    return {f"{LAYER}.compressed": w[live].view(len(w), -1), f"{LAYER}.bitmask": bits, f"{LAYER}.shape": shape}


def masked(w: torch.Tensor) -> dict[str, torch.Tensor]:
    """As modelopt's state_dict has it: transformers would load the raw weight."""
    return {f"{LAYER}.weight": torch.where(w == 0, 3.0, w), f"{LAYER}._weight_mask": w != 0}


@pytest.mark.parametrize("stored", [packed, masked])
def test_a_pruned_folder_is_read_as_its_tool_meant_it(
    stored: Callable[[torch.Tensor], dict[str, torch.Tensor]], folder: Path
) -> None:
    tensors = load_file(folder / "model.safetensors")
    w = tensors.pop(f"{LAYER}.weight")
    w = torch.where(torch.arange(w.shape[1]) % 4 < 2, w, torch.zeros(()))
    save_file({**tensors, **stored(w)}, folder / "model.safetensors", {"format": "pt"})
    sparsity = {"format": "sparse-24-bitmask", "sparsity_structure": "2:4", "ignore": [], "targets": ["Linear"]}
    if stored is packed:
        configured(quantization_config={"quant_method": "compressed-tensors", "sparsity_config": sparsity})(folder)
    model = load_model(str(folder))
    assert torch.equal(model.get_parameter(f"{LAYER}.weight"), w)
    assert all(
        torch.equal(model.get_parameter(name), tensor) for name, tensor in tensors.items() if "position_ids" not in name
    )


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "bad json": (written("config.json", b"{nope"), "config.json is no readable JSON"),
    "no text": (written("config.json", b"\xff\xfe\x00"), "config.json is no readable JSON"),
    "a list": (written("config.json", b"[1]"), "expected a JSON object, found list"),
    "no model type": (written("config.json", b"{}"), "no model that transformers can load: ValueError"),
    "foreign model type": (configured(model_type="foo"), "no model that transformers can load: ValueError"),
    "foreign architecture": (configured(architectures=["FooModel"]), "'FooModel', which transformers .* does not have"),
    "no architecture": (configured(architectures=["set_seed"]), "'set_seed', which transformers .* does not have"),
    "architecture 5": (configured(architectures=5), "no model that transformers can load: "),
    "hidden size 'big'": (configured(hidden_size="big"), "no model that transformers can load: Strict"),
    "activation": (configured(hidden_act="nonsense"), "no model that transformers can load: KeyError: 'nonsense'"),
    "other sizes": (configured(intermediate_size=128), "has another shape than config.json asks for"),
    "junk": (written("model.safetensors", b"junk" * 30), "neither a safetensors file nor a torch file"),
    "truncated": (truncated, "is damaged or no safetensors file"),
    "junk of torch": (with_junk_of_torch, "neither a safetensors file nor a torch file"),
    "no weights": (without_weights, "holds no .*safetensors"),
    "a lost tensor": (without_a_tensor, "lacks 1 of the tensors that BertModel has, such as encoder"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_folder_is_refused_in_one_line(name: str, folder: Path) -> None:
    damage, text = DAMAGES[name]
    damage(folder)
    with pytest.raises(FileError, match=text) as refused:
        load_model(str(folder))
    assert "\n" not in str(refused.value)
    assert str(folder) in str(refused.value)


def test_a_folder_without_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"has no config\.json"):
        load_model(str(tmp_path))


def test_a_missing_transformers_is_an_environment_error(
    whole: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "transformers" else find(name, *a)
    )
    with pytest.raises(MachineError, match="pip install transformers"):
        load_model(str(whole))
    monkeypatch.setattr("sys.argv", ["ajour", "plan", str(whole)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 3
    assert "pip install transformers" in capsys.readouterr().err


def test_a_text_longer_than_the_model_takes_is_refused(whole: Path) -> None:
    with pytest.raises(ValueError, match="does not take an input of shape 1x33: "):
        make_example(load_model(str(whole)), (1, 33))


def test_inspect_reads_the_folder_without_transformers(
    whole: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.setattr("sys.argv", ["ajour", "inspect", str(whole), "--json"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 0
    names = [layer["name"] for layer in json.loads(capsys.readouterr().out)["layers"]]
    assert "encoder.layer.0.attention.self.query" in names
