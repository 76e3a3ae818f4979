"""Labels are checked against the zeros: whether N of M are kept or pruned, and where that is not so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import ajour
from ajour.importers.claims import Checked, Claim, claims_of


def keeping(keep: int, n: int = 32, k: int = 32) -> Tensor:
    """The largest `keep` of every four."""
    w = torch.randn(n, k // 4, 4)
    w.scatter_(-1, torch.rand(n, k // 4, 4).topk(4 - keep).indices, 0.0)
    return w.view(n, k)


def folder(path: Path, tensors: dict[str, Tensor], structure: str, ignore: object = ()) -> Path:
    sparsity = {"format": "dense", "sparsity_structure": structure, "ignore": ignore}
    config = {"quantization_config": {"quant_method": "compressed-tensors", "sparsity_config": sparsity}}
    (path / "config.json").write_text(json.dumps(config))
    save_file(tensors, path / "model.safetensors")
    return path


def test_a_true_claim_is_said_to_be_true(tmp_path: Path) -> None:
    found = ajour.inspect(folder(tmp_path, {"a.weight": keeping(2), "b.weight": keeping(2)}, "2:4"))
    assert found.claims[0].true
    assert "claims 2:4, 2 of 4 pruned (keeps 2 of 4): true of all 512 groups in 2 layers" in str(found)
    said = json.loads(found.to_json())["claims"][0]
    assert (said["true"], said["broken"], said["claim"]["first"]) == (True, 0, 2)


def test_a_false_claim_counts_its_breaks_and_shows_the_first(tmp_path: Path) -> None:
    good, bad = keeping(2), keeping(2)
    bad[3, 8:12] = torch.tensor([1.0, 0.0, 2.0, 3.0])
    bad[5, :8] = 1.0
    found = ajour.inspect(folder(tmp_path, {"a.weight": good, "b.weight": bad}, "2:4"))
    assert not found.claims[0].true
    assert (
        "NOT TRUE, 3 of 512 groups break it, in 1 of 2 layers; the first is in b, row 3, columns 8 to 11: 3 non-zeros"
    ) in str(found)


@pytest.mark.parametrize(("keep", "true"), [(3, True), (1, True), (4, False)])
def test_llm_compressor_counts_what_is_pruned(tmp_path: Path, keep: int, true: bool) -> None:
    found = ajour.inspect(folder(tmp_path, {"a.weight": keeping(keep)}, "1:4"))
    assert found.claims[0].true == true
    assert "claims 1:4, 1 of 4 pruned (keeps 3 of 4)" in str(found)


def test_a_claim_that_is_true_by_the_other_convention_says_so() -> None:
    kept = Checked(Claim(1, 4, "kept", "a recipe"))
    kept.look_at("a", keeping(3))
    assert not kept.true
    assert str(kept).endswith("It is true where 1 of 4 are meant to be pruned")
    pruned = Checked(Claim(3, 4, "pruned", "a recipe"))
    pruned.look_at("a", keeping(3))
    assert str(pruned).endswith("It is true where 3 of 4 are meant to be kept")
    neither = Checked(Claim(1, 4, "kept", "a recipe"))
    neither.look_at("a", keeping(4))
    assert "meant" not in str(neither)


def test_a_negative_zero_is_a_zero_and_a_last_group_may_overhang() -> None:
    w = keeping(2, 8, 8)
    checked = Checked(Claim(2, 4, "kept", "x"))
    checked.look_at("a", torch.where(w == 0, -0.0, w)[:, :7])
    assert (checked.true, checked.groups) == (True, 16)


@pytest.mark.parametrize("ignore", [["lm_head"], ["re:.*lm_head"], ["re:^lm_.*$"], ["model.lm_head"]])
def test_layers_that_a_claim_leaves_out_don_t_break_it(tmp_path: Path, ignore: list[str]) -> None:
    tensors = {"model.fc.weight": keeping(2), "model.lm_head.weight": torch.randn(32, 32)}
    found = ajour.inspect(folder(tmp_path, tensors, "2:4", [name.replace("^lm_", "model.lm_") for name in ignore]))
    assert (found.claims[0].true, found.claims[0].layers) == (True, 1)


def test_a_recipe_s_claim_is_checked_too(tmp_path: Path) -> None:
    save_file({"a.weight": torch.randn(32, 32)}, tmp_path / "model.safetensors")
    (tmp_path / "recipe.yaml").write_text("stage:\n  SparseGPTModifier:\n    mask_structure: '2:4'\n")
    said = str(ajour.inspect(tmp_path))
    assert "the mask_structure of recipe.yaml (llm-compressor) claims 2:4" in said
    assert "NOT TRUE, 256 of 256 groups" in said


@pytest.mark.parametrize("structure", ["unstructured", "0:0", "4:4", "2:4:8", "", "-1:4"])
def test_labels_that_claim_no_pattern_are_left_alone(structure: str) -> None:
    assert claims_of({"quantization_config": {"sparsity_config": {"sparsity_structure": structure}}}) == []


@pytest.mark.parametrize("config", [{}, {"quantization_config": 3}, {"quantization_config": {"sparsity_config": []}}])
def test_odd_configs_claim_nothing(config: dict[str, object]) -> None:
    assert claims_of(config) == []


def test_a_live_model_s_config_is_checked() -> None:
    class Config:
        def to_dict(self) -> dict[str, object]:
            return {"quantization_config": {"sparsity_config": {"sparsity_structure": "2:4"}}}

    model = nn.Sequential(nn.Linear(32, 32))
    model.config = Config()
    assert "NOT TRUE, 256 of 256 groups" in str(ajour.inspect(model))
    model[0].weight.data = keeping(2)
    assert ajour.inspect(model).claims[0].true


def test_names_of_files_are_no_markup_and_no_control_codes(tmp_path: Path) -> None:
    save_file({"[/red]a\x1b[2J.weight": keeping(2)}, tmp_path / "x.safetensors")
    assert "[/red]a\\x1b[2J" in str(ajour.inspect(tmp_path / "x.safetensors"))


@pytest.mark.parametrize(
    ("pattern", "layer", "meant"),
    [
        ("re:.*mlp.gate$", "model.mlp.gate_proj", False), ("re:.*mlp.gate$", "model.mlp.gate", True),
        ("re:.*mlp.gate", "model.mlp.gate_proj", True), ("re:mlp", "model.mlp", False),
        (r"re:model\.layers\.\d+\.fc$", "model.layers.12.fc", True),
        (r"re:model\.layers\.\d+\.fc$", "model.layers.x.fc", False),
        ("re:.*(q|k)_proj", "a.q_proj", None), ("re:" + ".*" * 400 + "x$", "a" * 300, False), ("Embedding", "a", None),
    ],
)  # fmt: skip
def test_patterns_begin_where_names_do_and_what_is_not_understood_is_not_guessed(
    pattern: str, layer: str, meant: bool | None
) -> None:
    assert Claim(2, 4, "pruned", "x", targets=(pattern,)).is_for(layer) is meant
    assert Claim(2, 4, "pruned", "x", ignored=(pattern,)).is_for(layer) is (None if meant is None else not meant)


def test_a_claim_whose_layers_can_t_be_told_is_neither_true_nor_false(tmp_path: Path) -> None:
    found = ajour.inspect(folder(tmp_path, {"a.weight": torch.randn(32, 32)}, "2:4", ["re:(a|b)"]))
    assert "can't tell, as it names its layers in a way that is not understood (1 layers)" in str(found)
    assert not found.claims[0].true


@pytest.mark.parametrize(
    "recipe",
    [
        "stage:\n  Wanda:\n    mask_structure: '2:4'\n    ignore: ['re:.*skip$', lm_head]\n  Other:\n    ignore: [a]\n",
        "stage:\n  Wanda:\n    ignore:\n    - re:.*skip$\n    - lm_head\n    mask_structure: 2:4\n",
        "stage:\n  Wanda:\n    targets: [a]\n    mask_structure: 2:4\n",
    ],
)
def test_a_recipe_s_own_ignore_and_targets_hold(tmp_path: Path, recipe: str) -> None:
    save_file({"a.weight": keeping(2), "skip.weight": torch.randn(32, 32)}, tmp_path / "model.safetensors")
    (tmp_path / "recipe.yaml").write_text(recipe)
    (claim,) = ajour.inspect(tmp_path).claims
    assert (claim.true, claim.layers) == (True, 1)
