"""ajour.read: every tool's keep-or-drop sense, order of places and naming trap, and how a model is filled."""

from __future__ import annotations

import json
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import ajour
from ajour.terms.errors import FileError

W = torch.randn(24, 16)
KEPT = torch.rand(24, 16) < 0.5


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.bn = nn.Linear(16, 24), nn.BatchNorm1d(24)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.bn(self.fc(x)))


def saved(path: Path, value: object, **settings: bool) -> Path:
    torch.save(value, path / "x.pt", **settings)
    return path / "x.pt"


@pytest.mark.parametrize(
    ("weight", "mask", "name"),
    [
        ("a.fc.weight_orig", "a.fc.weight_mask", "a.fc.weight"),
        ("a.fc.in_proj_weight_orig", "a.fc.in_proj_weight_mask", "a.fc.in_proj_weight"),
        ("weight_orig", "weight_mask", "weight"),
        ("a.fc.parametrizations.weight.original", "a.fc.parametrizations.weight.0.mask", "a.fc.weight"),
        ("parametrizations.weight.original", "parametrizations.weight.0.mask", "weight"),
        ("a.fc.weight", "a.fc._weight_mask", "a.fc.weight"),
        ("a.fc.weight", "a.fc.__weight_mma_mask", "a.fc.weight"),
        ("a.fc.in_proj_weight", "a.fc.__in_proj_weight_mma_mask", "a.fc.in_proj_weight"),
        ("a.fc.weight", "a.fc.mask", "a.fc.weight"),
        ("a.fc.weight", "__nncf_hooks.post_hooks.a:fc:weight__0.0.binary_mask", "a.fc.weight"),
        ("model.a.fc.weight", "mask_a___fc___weight", "model.a.fc.weight"),
        ("a.fc.weight", "mask_a___fc___weight", "a.fc.weight"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.bool, torch.float32, torch.int32])
def test_one_is_kept_in_every_tool_s_mask(
    tmp_path: Path, weight: str, mask: str, name: str, dtype: torch.dtype
) -> None:
    state = {weight: W, mask: KEPT.to(dtype), "bias": torch.ones(3)}
    save_file(state, tmp_path / "x.safetensors")
    for source in (state, saved(tmp_path, {"model": state}), tmp_path / "x.safetensors"):
        found = ajour.read(source)
        assert set(found) == {name, "bias"}
        assert torch.equal(found[name], W * KEPT)


def test_asp_s_pruned_values_do_not_come_back() -> None:
    state = {"fc.weight": W * KEPT, "fc.__weight_mma_mask": KEPT, "fc.__weight_mma_pruned_p": W * ~KEPT}
    found = ajour.read(state)
    assert set(found) == {"fc.weight"}
    assert torch.equal(found["fc.weight"], W * KEPT)


def test_openlth_s_stored_weights_may_not_be_masked_yet() -> None:
    found = ajour.read({"model.fc.weight": W, "mask_fc___weight": KEPT.float()})["model.fc.weight"]
    assert torch.equal(found, W * KEPT)


def test_a_hook_of_nncf_that_is_no_mask_of_bits_is_refused() -> None:
    state = {"fc.weight": W, "__nncf_hooks.post_hooks.fc:weight__0.0.mask": W}
    with pytest.raises(FileError, match="hook of NNCF's that ajour does not know"):
        ajour.read(state)


def test_chains_of_masks_are_all_applied() -> None:
    other, path = torch.rand(24, 16) < 0.5, "fc.parametrizations.weight"
    found = ajour.read({f"{path}.original": W, f"{path}.0.mask": KEPT, f"{path}.1.mask": other})
    assert torch.equal(found["fc.weight"], W * KEPT * other)


def test_masks_under_a_key_of_one_s_own(tmp_path: Path) -> None:
    state = {"fc.weight": W, "kept/fc": KEPT.byte(), "bn.weight": torch.ones(24)}
    found = ajour.read(saved(tmp_path, state), mask_key="kept/{name}")
    assert torch.equal(found["fc.weight"], W * KEPT)
    assert set(found) == {"fc.weight", "bn.weight"}
    with pytest.raises(FileError, match=r"mask_key='kept' should hold \{name\} once"):
        ajour.read(state, mask_key="kept")
    with pytest.raises(FileError, match=r"holds no mask under '\{name\}.kept'; it holds fc.weight, kept/fc"):
        ajour.read(state, mask_key="{name}.kept")
    with pytest.raises(FileError, match=r"kept/fc has the shape \(3,\)"):
        ajour.read({**state, "kept/fc": torch.ones(3)}, mask_key="kept/{name}")


def test_any_mapping_of_masks_prunes_a_model() -> None:
    for masks, key in (
        ({"fc.weight": KEPT}, None), ({"fc": KEPT.int()}, None), ({"fc.m": KEPT.float()}, "{name}.m"),
        ({"fc.weight": KEPT.float()}, "{name}.weight"),
    ):  # fmt: skip
        model = Net()
        before = model.fc.weight.detach().clone()
        assert ajour.read(masks, model, key) is model
        assert torch.equal(model.fc.weight, before * KEPT)


def test_openlth_s_mask_file_prunes_a_model(tmp_path: Path) -> None:
    path, model = saved(tmp_path, {"fc.weight": KEPT.int()}), Net()
    before = model.fc.weight.detach().clone()
    ajour.read(path, model)
    assert torch.equal(model.fc.weight, before * KEPT)
    with pytest.warns(UserWarning, match=r"\(masks by name\) holds no whole model.*Give model= to apply it"):
        assert torch.equal(ajour.read(path)["fc.weight"], KEPT.int())


@pytest.mark.parametrize("legacy", [False, True])
def test_true_is_kept_in_masksparsity_s_masks_of_channels(tmp_path: Path, legacy: bool) -> None:
    kept, model = torch.rand(24) < 0.5, Net().eval()
    nn.init.normal_(model.bn.weight), nn.init.normal_(model.bn.bias)
    x, path = torch.randn(5, 16), saved(tmp_path, OrderedDict(bn=kept), _use_new_zipfile_serialization=not legacy)
    whole = model(x)
    ajour.read(path, model)
    assert torch.equal(model(x)[:, kept], whole[:, kept])
    assert not bool(model(x)[:, ~kept].any())
    with pytest.raises(FileError, match=r"bn: the file is for \(8,\), the model holds \(24,\).*narrowed before"):
        ajour.read(saved(tmp_path, OrderedDict(bn=torch.ones(8, dtype=torch.bool))), model)


def test_r_amt_s_bits_run_along_rows_the_most_significant_first(tmp_path: Path) -> None:
    model = nn.Linear(11, 3)
    kept = torch.rand(3, 11) < 0.5
    bits = bytes(np.packbits(kept.numpy().reshape(-1), bitorder="big"))
    attention = nn.MultiheadAttention(8, 2)
    in_proj, out_proj = torch.rand(24, 8) < 0.5, torch.rand(8, 8) < 0.5
    holder = nn.ModuleDict({"conv1": model, "attn": attention})
    before = {name: tensor.clone() for name, tensor in holder.state_dict().items()}
    masks = {"conv1.mask_real": bits, "attn.mask_real": bytes(np.packbits(in_proj.numpy().reshape(-1)))}
    masks["attn.out_proj.mask_real"] = bytes(np.packbits(out_proj.numpy().reshape(-1)))
    path = saved(tmp_path, {"state_dict": masks, "epoch": 3, "optimizer": {"state": {}, "param_groups": []}})
    ajour.read(path, holder)
    assert torch.equal(model.weight, before["conv1.weight"] * kept)
    assert torch.equal(attention.in_proj_weight, before["attn.in_proj_weight"] * in_proj)
    assert torch.equal(attention.out_proj.weight, before["attn.out_proj.weight"] * out_proj)
    assert torch.equal(model.bias, before["conv1.bias"])
    with pytest.raises(FileError, match=r"\(R-AMT\) changes a base model and does not say the shapes"):
        ajour.read(path)


@pytest.mark.parametrize(
    ("bits", "message"), [(b"\xff" * 6, "expected 5 bytes"), (b"\xff" * 5, "a bit beyond the last")]
)
def test_r_amt_s_bits_must_be_as_many_as_the_weights(tmp_path: Path, bits: bytes, message: str) -> None:
    with pytest.raises(FileError, match=message):
        ajour.read(saved(tmp_path, {"state_dict": {"mask.mask_real": bits}}), nn.ModuleDict({"mask": nn.Linear(11, 3)}))


def lt_sft(delta: Tensor) -> dict[str, object]:
    """As composable-sft encodes it: gaps down the columns, a numpy integer first."""
    flat = delta.numpy().flatten(order="F")
    places = np.flatnonzero(flat)
    steps = [places[0], *np.diff(places).tolist()] if len(places) else []
    return {"size": delta.size(), "index_steps": steps, "values": torch.from_numpy(flat[places].copy())}


@pytest.mark.parametrize("shape", [(24, 16), (24,), (4, 3, 2, 5), (1, 16)])
@pytest.mark.parametrize("keys", [("diffs", "abs"), ("body", "head")])
def test_lt_sft_s_gaps_run_down_columns(tmp_path: Path, shape: tuple[int, ...], keys: tuple[str, str]) -> None:
    delta = torch.where(torch.rand(shape) < 0.2, torch.randn(shape), torch.zeros(()))
    model = nn.Module()
    model.w = nn.Parameter(torch.randn(shape))
    model.w.data.flatten()[0] = -0.0
    delta.flatten()[0] = 0.0
    before = model.w.detach().clone()
    ajour.read(saved(tmp_path, {keys[0]: {"w": lt_sft(delta)}, keys[1]: {}}), model)
    assert torch.equal(model.w, before + delta)
    assert bool(torch.signbit(model.w.flatten()[0]))  # what a difference does not touch keeps its bits


@pytest.mark.filterwarnings("ignore:.*holds no whole model")
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({"size": (3, 2)}, "leave the tensor of"),
        ({"index_steps": [0, 0]}, "name a place twice"),
        ({"index_steps": [-1, 2]}, "none below 0"),
        ({"index_steps": [1.5, 2]}, "should be whole numbers"),
        ({"index_steps": [1]}, "expected a value for each of its 1"),
        ({"size": (2**30, 2**30)}, "its size of 2 sides is none of a tensor"),
        ({"size": (2**30, 2**10)}, "claims to hold 1099511627776 weights, which is damage or malice"),
    ],
)
def test_damaged_differences_are_named(tmp_path: Path, damage: dict[str, object], message: str) -> None:
    encoded = {"size": (24, 16), "index_steps": [3, 90], "values": torch.ones(2), **damage}
    with pytest.raises(FileError, match=message):
        ajour.read(saved(tmp_path, {"diffs": {"fc.weight": encoded}, "abs": {}}))


@pytest.mark.parametrize("adapter", ["", "default."])
@pytest.mark.parametrize("prefix", ["", "base_model.model."])
def test_peft_sft_s_places_run_along_rows(tmp_path: Path, adapter: str, prefix: str) -> None:
    delta, model = torch.where(torch.rand(24, 16) < 0.1, torch.randn(24, 16), torch.zeros(())), Net()
    places = delta.flatten().nonzero().flatten()
    key, head = f"{prefix}fc.sft_delta.{adapter}", torch.randn(24)
    state = {f"{key}values": delta.flatten()[places], f"{key}indices": places.int(), f"{prefix}bn.bias": head}
    (tmp_path / "adapter").mkdir()
    save_file(state, tmp_path / "adapter" / "adapter_model.safetensors")
    before = model.fc.weight.detach().clone()
    ajour.read(tmp_path / "adapter", model)
    assert torch.equal(model.fc.weight, before + delta)
    assert torch.equal(model.bn.bias, head)
    with pytest.raises(FileError, match=r"\(PEFT-SFT\) changes a base model and does not say the shapes"):
        ajour.read(tmp_path / "adapter")


@pytest.mark.parametrize(
    ("places", "message"),
    [
        (torch.tensor([3, 2]), "expected sorted places within"),
        (torch.tensor([2, 2]), "each named once"),
        (torch.tensor([2, 24 * 16]), "expected sorted places within"),
        (torch.tensor([-1, 2]), "expected sorted places within"),
        (torch.tensor([1.0, 2.0]), "expected int32 or int64"),
        (torch.tensor([1]), "one place in .* for each of its values"),
    ],
)
def test_damaged_places_are_named(places: Tensor, message: str) -> None:
    model = Net()
    before = model.fc.weight.detach().clone()
    with pytest.raises(FileError, match=message):
        ajour.read({"fc.sft_delta.values": torch.ones(2), "fc.sft_delta.indices": places}, model)
    assert torch.equal(model.fc.weight, before)


def test_a_folder_s_shards_may_part_a_weight_from_its_mask(tmp_path: Path) -> None:
    save_file({"fc.weight": W}, tmp_path / "a.safetensors")
    save_file({"fc._weight_mask": KEPT, "fc.bias": W[:, 0].contiguous()}, tmp_path / "b.safetensors")
    places = {"fc.weight": "a.safetensors", "fc._weight_mask": "b.safetensors", "fc.bias": "b.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    found = ajour.read(tmp_path)
    assert torch.equal(found["fc.weight"], W * KEPT)
    assert torch.equal(found["fc.bias"], W[:, 0])


def test_what_is_read_does_not_follow_the_file(tmp_path: Path) -> None:
    save_file({"fc.weight": W}, tmp_path / "x.safetensors")
    found = ajour.read(tmp_path / "x.safetensors")
    with (tmp_path / "x.safetensors").open("r+b") as file:
        file.seek(200)
        file.write(b"\xff" * 500)
    assert torch.equal(found["fc.weight"], W)


def test_quantized_checkpoints_are_refused_by_name(tmp_path: Path) -> None:
    save_file({"fc.weight": W}, tmp_path / "model.safetensors")
    for quantization in ({"quant_method": "gptq"}, {"quant_method": "compressed-tensors", "config_groups": {"a": {}}}):
        (tmp_path / "config.json").write_text(json.dumps({"quantization_config": quantization}))
        with pytest.raises(FileError, match=r"is quantized \((gptq|compressed-tensors)\), which is not supported"):
            ajour.read(tmp_path)


@pytest.mark.parametrize(
    ("names", "message"),
    [(("fc.weight_packed", "fc.meta"), "of marlin-24"), (("fc.compressed", "fc.weight_scale"), "sparse and quantized")],
)
def test_a_packed_file_without_its_config_is_refused_by_name(names: tuple[str, str], message: str) -> None:
    with pytest.raises(FileError, match=message):
        ajour.read({name: torch.arange(5) for name in names})


def test_two_forms_of_one_weight_are_refused() -> None:
    state = {"fc.weight": W, "fc.parametrizations.weight.original": W, "fc.parametrizations.weight.0.mask": KEPT}
    with pytest.raises(FileError, match=r"holds 'fc.weight' in two forms"):
        ajour.read(state)
