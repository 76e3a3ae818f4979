"""Masks come from zeros, patterns and other tools, keep one bit for each weight, and refuse what doesn't fit."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune

import ajour
from ajour.terms.errors import ConversionError, FileError, PatternError
from ajour.terms.pattern import NM, Block, Dense, Unstructured
from ajour.train import Mask, MaskedSGD, Masks


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(32, 48), nn.ReLU(), nn.Linear(48, 20))


@given(st.lists(st.booleans(), min_size=0, max_size=100))
@settings(deadline=None)
def test_a_mask_is_its_bits_and_back(entries: list[bool]) -> None:
    kept = torch.tensor(entries, dtype=torch.bool)
    mask = Mask.from_dense(kept)
    assert torch.equal(mask.dense(), kept)
    assert mask.kept == sum(entries)
    assert mask.bits.numel() == -(-len(entries) // 8)
    assert [int(mask.bits[i // 8]) >> i % 8 & 1 for i in range(len(entries))] == [int(entry) for entry in entries]


def test_a_mask_keeps_its_shape_and_counts() -> None:
    kept = torch.rand(3, 5, 7) > 0.4
    mask = Mask.from_dense(kept.float())
    assert torch.equal(mask.dense(), kept)
    assert mask.density == pytest.approx(kept.float().mean().item())
    assert mask.shape == (3, 5, 7)


def test_a_mask_refuses_what_is_no_mask() -> None:
    with pytest.raises(PatternError, match=r"zeros and ones alone"):
        Mask.from_dense(torch.tensor([0.0, 0.5]))
    with pytest.raises(PatternError, match=r"expected uint8 \(2,\), found torch.uint8 \(3,\)"):
        Mask(torch.zeros(3, dtype=torch.uint8), (3, 5))
    with pytest.raises(PatternError, match=r"a bit beyond the last entry"):
        Mask(torch.tensor([0, 128], dtype=torch.uint8), (3, 5))


def test_apply_writes_plus_zero_over_anything() -> None:
    kept = torch.rand(9, 9) > 0.5
    weight = torch.where(kept, torch.randn(9, 9), torch.tensor([torch.nan, -0.0, torch.inf]).repeat(27).view(9, 9))
    before = weight.clone()
    Mask.from_dense(kept).apply_(weight)
    assert torch.equal(weight[kept], before[kept])
    assert not weight[~kept].view(torch.int32).any()


@pytest.mark.parametrize("pattern", [NM(2, 4), Block(4, 4), Unstructured()], ids=str)
def test_a_pattern_keeps_what_prune_keeps(pattern: NM | Block | Unstructured) -> None:
    model, density = mlp(), None if isinstance(pattern, NM) else 0.3
    masks = Masks.from_pattern(model, pattern, density)
    assert (model[0].weight != 0).all(), "the model itself isn't changed"
    ajour.prune(model, pattern, density=density)
    assert masks == Masks.from_zeros(model)
    assert list(masks) == ["0.weight", "2.weight"]


def test_a_pattern_refuses_a_density_that_does_not_go_with_it() -> None:
    for pattern, density in ((NM(2, 4), 0.5), (Unstructured(), None), (Dense(), 0.5)):
        with pytest.raises(PatternError, match=r"don't go together"):
            Masks.from_pattern(mlp(), pattern, density)
    with pytest.raises(PatternError, match=r"from 0 to 1; found 1.5"):
        Masks.from_pattern(mlp(), Unstructured(), 1.5)
    with pytest.raises(ConversionError, match=r"no layer matches 'head'"):
        Masks.from_pattern(mlp(), Unstructured(), 0.5, layers="head")


def test_zeros_count_in_every_kind_of_weight_but_not_where_they_mean_something_else() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words = nn.Embedding(40, 32, padding_idx=0)
            self.conv = nn.Conv2d(16, 16, 3)
            self.fc = nn.Linear(32, 40)
            self.full = nn.Linear(32, 32)
            self.head = nn.Linear(32, 40)
            self.head.weight = self.words.weight

    model = Model()
    with torch.no_grad():
        model.conv.weight[:, ::2] = 0
        model.fc.weight[::2] = -0.0
    masks = Masks.from_zeros(model)
    assert list(masks) == ["conv.weight", "fc.weight"]
    assert torch.equal(masks["conv.weight"].dense(), model.conv.weight != 0)


def test_a_weight_of_zeros_alone_must_be_meant() -> None:
    model = mlp()
    nn.init.zeros_(model[2].weight)
    with pytest.raises(PatternError, match=r"'2.weight' is zero everywhere: new, or pruned in whole"):
        Masks.from_zeros(model)
    assert Masks.from_zeros(model, layers="2").density("2.weight") == 0.0


def test_masks_of_torch_prune_have_the_names_of_its_parameters() -> None:
    model = mlp()
    torch_prune.random_unstructured(model[0], "weight", 0.6)
    torch_prune.random_unstructured(model[0], "bias", 0.5)
    masks = Masks.from_prune(model)
    assert list(masks) == ["0.weight_orig", "0.bias_orig"]
    assert torch.equal(masks["0.weight_orig"].dense(), model[0].weight_mask.bool())
    assert Masks.from_zeros(model)["0.weight_orig"] == masks["0.weight_orig"]
    with pytest.raises(PatternError, match=r"nothing in this model was pruned"):
        Masks.from_prune(mlp())


def test_tensors_are_checked_against_the_model_by_name() -> None:
    model = mlp()
    good = torch.rand(48, 32) > 0.5
    assert torch.equal(Masks.from_tensors({"0.weight": good.float()}, model)["0.weight"].dense(), good)
    with pytest.raises(PatternError, match=r"'0.weight': its mask is \(32, 48\), the parameter \(48, 32\)"):
        Masks.from_tensors({"0.weight": good.t()}, model)
    with pytest.raises(PatternError, match=r"'fc.weight', which is no parameter of this Sequential"):
        Masks.from_tensors({"fc.weight": good}, model)
    with pytest.raises(PatternError, match=r"'0.weight': a mask holds zeros and ones"):
        Masks.from_tensors({"0.weight": good + 1}, model)


def test_a_tied_parameter_has_one_mask() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    model[1].weight = model[0].weight
    kept = torch.rand(8, 8) > 0.5
    with pytest.raises(PatternError, match=r"'1.weight' and '0.weight' are one tied parameter under two masks"):
        Masks.from_tensors({"0.weight": kept, "1.weight": kept}, model)
    assert Masks.from_tensors({"1.weight": kept}, model).names_of([model[0].weight]) == ["1.weight"]


def pair() -> tuple[Masks, Masks, dict[str, tuple[Tensor, Tensor]]]:
    tensors = {name: (torch.rand(6, 5) > 0.5, torch.rand(6, 5) > 0.3) for name in "ab"}
    mine = Masks.from_tensors({name: both[0] for name, both in tensors.items()})
    theirs = Masks.from_tensors({name: both[1] for name, both in tensors.items()})
    return mine, theirs, tensors


def test_union_intersection_and_differences() -> None:
    mine, theirs, tensors = pair()
    for name, (a, b) in tensors.items():
        assert torch.equal((mine | theirs)[name].dense(), a | b)
        assert torch.equal((mine & theirs)[name].dense(), a & b)
        assert mine.differences(theirs)[name] == int((a != b).sum())
    assert mine == Masks(dict(mine))
    assert mine != theirs
    assert not mine.differences(mine)


def test_without_a_mask_all_is_kept() -> None:
    mine, theirs, tensors = pair()
    del theirs["b"]
    assert list(mine | theirs) == ["a"]
    assert (mine & theirs)["b"] == mine["b"]
    assert list(theirs & mine) == ["a", "b"]
    assert mine.differences(theirs)["b"] == int((~tensors["b"][0]).sum())
    with pytest.raises(PatternError, match=r"different shapes don't combine"):
        mine["a"] | Mask.from_dense(torch.ones(5, 6))


def test_a_replaced_mask_keeps_its_shape() -> None:
    mine, _, _ = pair()
    with pytest.raises(PatternError, match=r"'a': expected a mask of \(6, 5\), found \(5, 6\)"):
        mine["a"] = Mask.from_dense(torch.ones(5, 6))
    mine["a"] = Mask.from_dense(torch.ones(6, 5))
    assert mine.densities() == {"a": 1.0, "b": mine["b"].density}
    assert mine.density() == pytest.approx((30 + mine["b"].kept) / 60)


def test_a_file_holds_one_bit_for_each_weight(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(512, 513))
    masks = Masks.from_pattern(model, Unstructured(), 0.2)
    path = tmp_path / "masks.safetensors"
    masks.save(path)
    assert path.stat().st_size < 512 * 513 / 8 + 500
    assert Masks.load(path, model) == masks
    assert Masks.from_state_dict(masks.state_dict()) == masks
    with pytest.raises(PatternError, match=r"'0.weight', which is no parameter of this Linear"):
        Masks.load(path, nn.Linear(3, 3))


def test_masks_are_saved_with_the_model_and_loaded_with_it(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(40, 24), nn.ReLU(), nn.Linear(24, 8))
    masks = Masks.from_pattern(model, Unstructured(), 0.3).apply_(model)
    plain, path = tmp_path / "plain.safetensors", tmp_path / "model.safetensors"
    ajour.save(model, plain)
    ajour.save(model, path, masks=masks)
    bits = sum(mask.bits.nbytes for mask in masks.values())
    assert path.stat().st_size - plain.stat().st_size < bits + 400, "one bit for each weight, and a header"
    fresh = nn.Sequential(nn.Linear(40, 24), nn.ReLU(), nn.Linear(24, 8))
    ajour.load(path, fresh)
    assert Masks.load(path, fresh) == masks
    assert all(torch.equal(a, b) for a, b in zip(fresh.parameters(), model.parameters(), strict=True))
    with pytest.raises(FileError, match=r"holds no masks of version 1; write them with Masks.save or ajour.save"):
        Masks.load(plain)
    with pytest.raises(PatternError, match=r"a mask is for '0.weight', which is no parameter of this ReLU"):
        Masks.load(path, nn.ReLU())
    with pytest.raises(PatternError, match=r"'0.weight': its mask is \(24, 40\), the parameter \(40, 24\)"):
        ajour.save(nn.Sequential(nn.Linear(24, 40)), plain, masks={"0.weight": masks["0.weight"]})


@pytest.mark.parametrize(
    ("shapes", "match"),
    [
        ('{"1.weight": [2]}', "does not hold the mask of '1.weight'"),
        ('{"0.weight": "x"}', "the mask of '0.weight' should have a shape"),
        ("[]", "the metadata 'masks' should be a dict"),
    ],
)
def test_a_model_s_file_with_damaged_masks_is_refused(tmp_path: Path, shapes: str, match: str) -> None:
    model, path = nn.Sequential(nn.Linear(8, 8)), tmp_path / "model.safetensors"
    ajour.save(model, path, masks=Masks.from_pattern(model, Unstructured(), 0.5))
    with safetensors.safe_open(path, "pt") as file:
        tensors, about = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    save_file(tensors, path, about | {"masks": shapes})
    with pytest.raises(FileError, match=match):
        ajour.load(path, model)


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "masks.safetensors"
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(FileError, match=r"could not be read"):
        Masks.load(path)
    ajour.save(mlp(), path)
    with pytest.raises(FileError, match=r"holds no masks of version 1"):
        Masks.load(path)
    with pytest.raises(FileError, match=r"'a' has no shape beside it"):
        Masks.from_state_dict({"a": torch.zeros(1, dtype=torch.uint8)})
    with pytest.raises(FileError, match=r"the mask 'a': the bits of a mask of \(3, 5\)"):
        Masks.from_state_dict({"a": torch.zeros(1, dtype=torch.uint8), "a:shape": torch.tensor([3, 5])})
    with pytest.raises(FileError, match=r"was not written"):
        Masks({}).save(tmp_path / "none" / "masks")


def test_apply_checks_every_mask_first() -> None:
    model, other = mlp(), mlp()
    masks = Masks.from_pattern(model, Unstructured(), 0.5)
    masks.apply_(model)
    assert Masks.from_zeros(model) == masks
    masks["9.weight"] = Mask.from_dense(torch.ones(3))
    before = [p.clone() for p in other.parameters()]
    with pytest.raises(PatternError, match=r"'9.weight', which is no parameter"):
        masks.apply_(other)
    assert all(torch.equal(a, b) for a, b in zip(before, other.parameters(), strict=True))


def test_what_is_no_mask_is_refused_by_name() -> None:
    model = nn.Linear(4, 3)
    masks = Masks.from_tensors({"weight": torch.ones(3, 4)})
    for refused in (lambda: masks.update(weight=torch.ones(3, 4)), lambda: Masks({"weight": torch.ones(3, 4)})):
        with pytest.raises(PatternError, match=r"'weight': expected a Mask, found a Tensor; use Masks.from_tensors"):
            refused()
    with pytest.raises(PatternError, match=r"'weight': expected a Mask, found a Tensor"):
        MaskedSGD(model.named_parameters(), {"weight": torch.ones(3, 4)})
    assert masks.version == 0
