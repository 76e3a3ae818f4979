"""Files that the tools themselves wrote: each gives exactly the dense weights that the tool finalises it to."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import ajour
from ajour.terms.errors import FileError
from hand_plan import hand_plan

FIXTURES = Path(__file__).parent.parent / "fixtures"
EXACT = {
    "torch_prune.pt": "torch_prune",
    "torch_prune_legacy.pt": "torch_prune",
    "parametrized.pt": "parametrized",
    "torch_ao_after.safetensors": "torch_ao",
    "torchao_before.pt": "torchao",
    "torchao_after.safetensors": "torchao",
    "modelopt.pt": "modelopt",
    "modelopt_state_dict.pt": "modelopt",
    "nncf.pt": "nncf",
    "torch_pruning_state_dict.pt": "torch_pruning",
    "sparse_24_bitmask": "sparse_24_bitmask",
    "sparse_bitmask": "sparse_bitmask",
}


def expected(name: str) -> dict[str, Tensor]:
    return load_file(FIXTURES / f"{name}.expected.safetensors")


def assert_same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert set(found) == set(wanted)
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


class Net(nn.Module):
    """A model that the tensors of a file fit into."""

    def __init__(self, state: dict[str, Tensor], fill: float = 7.0) -> None:
        super().__init__()
        for name in ("fc1", "fc2"):
            n, k = state[f"{name}.weight"].shape
            layer = nn.Linear(k, n, bias=f"{name}.bias" in state, dtype=state[f"{name}.weight"].dtype)
            for parameter in layer.parameters():
                nn.init.constant_(parameter, fill)
            self.add_module(name, layer)
        if "fc1.bias" in state:
            self.fc1.bias.data = self.fc1.bias.data.to(state["fc1.bias"].dtype)


def test_the_script_says_which_version_wrote_what() -> None:
    made_by = json.loads((FIXTURES / "made_by.json").read_text())
    for name in (*EXACT, "torch_ao_before.pt", "torch_pruning.pth", "pytorch_diff.bin"):
        assert made_by[f"{name}/model.safetensors" if (FIXTURES / name).is_dir() else name]
    assert made_by["sparse_bitmask/model.safetensors"] == "compressed-tensors 0.14.0.1"
    assert made_by["torchao_before.pt"] == "torchao 0.18.0"


@pytest.mark.parametrize("name", EXACT)
def test_each_file_gives_what_its_tool_makes_of_it(name: str) -> None:
    assert_same(ajour.read(FIXTURES / name), expected(EXACT[name]))


def test_a_sparsifier_s_file_before_squash_mask_is_told_to_have_lost_its_mask() -> None:
    with pytest.warns(UserWarning, match=r"fc1.weight: a parametrization's mask is not in the file.*squash_mask\(\)"):
        state = ajour.read(FIXTURES / "torch_ao_before.pt")
    assert not bool((state["fc1.weight"] == 0).any())


def test_a_modelopt_file_s_raw_weight_is_not_what_is_read() -> None:
    raw = torch.load(FIXTURES / "modelopt_state_dict.pt", weights_only=True)["fc1.weight"]
    found = ajour.read(FIXTURES / "modelopt_state_dict.pt")["fc1.weight"]
    assert not bool((raw == 0).any())
    assert float((found == 0).float().mean()) == 0.5


def test_objects_of_torch_pruning_are_refused_by_name() -> None:
    with pytest.raises(FileError, match=r"torch_pruning.pth holds torch.nn.modules.linear.Linear, not tensors alone"):
        ajour.read(FIXTURES / "torch_pruning.pth")


def test_lt_sft_changes_its_base_model_exactly() -> None:
    base, tuned = expected("lt_sft.base"), expected("lt_sft")
    model = Net(base)
    model.load_state_dict(base)
    assert_same(dict(ajour.read(FIXTURES / "pytorch_diff.bin", model).state_dict()), tuned)
    with pytest.warns(
        UserWarning, match="holds no whole model; what comes back is for a base model: difference and whole"
    ):
        alone = ajour.read(FIXTURES / "pytorch_diff.bin")
    assert torch.equal(base["fc1.weight"] + alone["fc1.weight"], tuned["fc1.weight"])
    assert 0 < int((alone["fc1.weight"] != 0).sum()) < 80


@pytest.mark.filterwarnings("ignore:fc")
@pytest.mark.parametrize("name", EXACT)
def test_from_file_to_converted_model_to_saved_file_and_back(name: str, tmp_path: Path) -> None:
    wanted = expected(EXACT[name])
    model = ajour.read(FIXTURES / name, Net(wanted))
    assert_same(dict(model.state_dict()), wanted)
    plan = hand_plan(model)
    assert any(choice.op for choice in plan.choices) == any(bool((w == 0).any()) for w in wanted.values())
    converted = ajour.convert(model, plan)
    ajour.save(converted, tmp_path / "model.safetensors")
    assert_same(ajour.read(tmp_path / "model.safetensors"), wanted)
    loaded = ajour.revert(ajour.load(tmp_path / "model.safetensors", Net(wanted)))
    assert_same(dict(loaded.state_dict()), wanted)


@pytest.mark.parametrize("name", EXACT)
def test_inspect_sees_the_zeros_of_each(name: str) -> None:
    wanted = expected(EXACT[name])
    layers = {layer.name: layer for layer in ajour.inspect(FIXTURES / name).layers}
    for path in ("fc1", "fc2"):
        w = wanted[f"{path}.weight"]
        if path in layers:
            assert layers[path].density == pytest.approx(float((w != 0).sum()) / w.numel())
    assert layers
