"""What ajour.read refuses, by name, rather than read something wrong or take endless memory or time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import ajour
from ajour.terms.errors import FileError

W = torch.randn(24, 16)
KEPT = torch.rand(24, 16) < 0.5


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.bn = nn.Linear(16, 24), nn.BatchNorm1d(24)


def saved(path: Path, value: object) -> Path:
    torch.save(value, path / "x.pt")
    return path / "x.pt"


@pytest.mark.parametrize(
    ("key", "shape"),
    [
        ("fc._weight_mask", (16, 24)), ("fc.mask", (1, 24, 16)), ("fc.__weight_mma_mask", (384,)),
        ("mask_fc___weight", (16, 24)), ("mask_other___weight", (24, 16)), ("gone._weight_mask", (24, 16)),
    ],
)  # fmt: skip
def test_a_mask_that_fits_no_weight_is_refused_by_name(key: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(FileError, match=f"'{key}'.*can't be applied to a weight here"):
        ajour.read({"fc.weight": W, key: torch.zeros(shape, dtype=torch.bool)})


def test_a_prune_mask_of_another_shape_or_a_second_tool_s_is_refused() -> None:
    with pytest.raises(FileError, match=r"'fc.weight_mask' \(16,\) is named as a mask"):
        ajour.read({"fc.weight_orig": W, "fc.weight_mask": torch.zeros(16)})
    with pytest.raises(FileError, match="another mask is there already"):
        ajour.read({"fc.weight": W, "fc._weight_mask": KEPT, "fc.mask": KEPT})


def test_a_mask_of_an_attention_is_no_tool_s() -> None:
    causal = torch.ones(16, 16).tril()
    assert torch.equal(ajour.read({"attn.mask": causal, "attn.q.weight": W})["attn.mask"], causal)


def test_openlth_s_masks_find_names_that_end_in_underscores() -> None:
    found = ajour.read({"model.a_.b.weight": W, "mask_a____b___weight": KEPT.float()})
    assert set(found) == {"model.a_.b.weight"}
    assert torch.equal(found["model.a_.b.weight"], W * KEPT)


@pytest.mark.parametrize("other", ["2.mask", "1._u", "0.scale", "original0"])
def test_a_chain_with_another_step_than_masks_is_refused(other: str) -> None:
    path = "fc.parametrizations.weight"
    with pytest.raises(FileError, match=f"{path}.{other}.*of parametrization's"):
        ajour.read({f"{path}.original": W, f"{path}.0.mask": KEPT, f"{path}.{other}": KEPT})


@pytest.mark.parametrize("size", [[2**10000], [[[]]], [1] * 65, "ab", {}])
def test_a_size_of_an_lt_sft_that_is_none_is_refused_unprinted(tmp_path: Path, size: object) -> None:
    encoded = {"size": size, "index_steps": [0], "values": torch.ones(1)}
    with pytest.raises(FileError, match=r"fc.weight: its size .*is none of a tensor"):
        ajour.read(saved(tmp_path, {"diffs": {"fc.weight": encoded}, "abs": {}}))


def test_rows_without_columns_are_counted_before_they_are_gone_through(tmp_path: Path) -> None:
    shape, none = torch.tensor([2**28, 0]), torch.empty(0)
    tensors = {"fc.compressed": none, "fc.bitmask": torch.empty(2**28, 0, dtype=torch.uint8), "fc.shape": shape}
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(FileError, match="claims to hold 268435456 weights"):
        ajour.read(tmp_path / "x.safetensors")


def test_codes_beside_their_scale_are_refused_without_a_config(tmp_path: Path) -> None:
    state = {"fc.weight": torch.ones(24, 16, dtype=torch.int8), "fc.weight_scale": torch.ones(24, 1)}
    with pytest.raises(FileError, match=r"'fc.weight' is quantized \(its scale is 'fc.weight_scale'\)"):
        ajour.read(state)
    assert set(ajour.read({**state, "fc.weight": W})) == set(state)
    save_file({"fc.weight": W}, tmp_path / "model.safetensors")
    said = {"compression_config": {"quant_method": "compressed-tensors", "config_groups": {"a": {}}}}
    (tmp_path / "config.json").write_text(json.dumps(said))
    with pytest.raises(FileError, match="is quantized"):
        ajour.read(tmp_path)


def test_loose_files_that_hold_one_name_twice_are_refused(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_file({"fc.weight": torch.randn(24, 16)}, tmp_path / f"{name}.safetensors")
    with pytest.raises(FileError, match=r"holds the tensor fc.weight in b.safetensors and in another file"):
        ajour.read(tmp_path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_zeros_and_ones_in_floats_are_masks_and_never_weights(dtype: torch.dtype) -> None:
    model = Net()
    before = model.fc.weight.detach().clone()
    ajour.read({"fc.weight": KEPT.to(dtype), "fc.bias": torch.ones(24, dtype=dtype)}, model)
    assert torch.equal(model.fc.weight, before * KEPT)
    with pytest.raises(FileError, match=r"What holds masks alone.*has nothing but zeros and ones in it"):
        ajour.read({"fc.weight": KEPT.to(dtype) / 2}, model)


def test_a_new_norm_s_zeros_and_ones_are_its_weights() -> None:
    state = nn.BatchNorm1d(24).state_dict()
    model = nn.BatchNorm1d(24)
    nn.init.normal_(model.weight)
    assert torch.equal(ajour.read(state, model).weight, torch.ones(24))


def test_weights_of_zeros_and_ones_beside_a_tool_s_mask_are_weights() -> None:
    ones = torch.ones(24, 16)
    assert torch.equal(ajour.read({"fc.weight": ones, "fc._weight_mask": KEPT})["fc.weight"], KEPT.float())
    with pytest.raises(FileError, match="can't be applied to a weight here"):
        ajour.read({"fc.weight": ones, "fc._weight_mask": KEPT.t()})


def test_what_is_no_path_is_refused() -> None:
    with pytest.raises(FileError, match="expected a path, or a mapping of tensors by name, found int"):
        ajour.read(5)  # type: ignore[call-overload]
