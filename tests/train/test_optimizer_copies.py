"""Copies and pickles of masked optimizers and of masks go on by themselves, as torch's do."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from ajour.terms.errors import PatternError
from ajour.terms.pattern import Unstructured
from ajour.train import Mask, MaskedAdamW, MaskedSGD, Masks, mask_linears
from masked import assert_held, small

KINDS: list[tuple[type, dict[str, Any]]] = [
    (MaskedAdamW, {"lr": 1e-2, "amsgrad": True}),
    (MaskedSGD, {"lr": 1e-2, "momentum": 0.9, "weight_decay": 0.1}),
]
WAYS: dict[str, Callable[[Any], Any]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda whole: pickle.loads(pickle.dumps(whole)),
    "torch.save": lambda whole: saved_and_loaded(whole),
}


def saved_and_loaded(whole: Any) -> Any:
    file = io.BytesIO()
    torch.save(whole, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def step(model: nn.Module, optimizer: Any, turn: int) -> None:
    generator = torch.Generator().manual_seed(turn)
    for p in model.parameters():
        p.grad = torch.randn(p.shape, generator=generator)
    optimizer.step()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("storage", ["dense", "compact"])
@pytest.mark.parametrize(("kind", "options"), KINDS, ids=["adamw", "sgd"])
@pytest.mark.parametrize("before", [0, 3])
def test_a_copy_trains_like_the_original_and_apart_from_it(
    before: int, kind: type, options: dict[str, Any], storage: str, way: str
) -> None:
    model, masks = small()
    optimizer = kind(model.named_parameters(), masks, storage=storage, **options)
    for turn in range(before):
        step(model, optimizer, turn)
    start = [p.detach().clone() for p in model.parameters()]
    twin, other = WAYS[way]((model, optimizer))
    for turn in range(3):
        step(twin, other, 10 + turn)
        assert_held(twin, masks)
    assert all(torch.equal(a, b) for a, b in zip(start, model.parameters(), strict=True)), "the original must not move"
    for turn in range(3):
        step(model, optimizer, 10 + turn)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))
    other.change_masks({"0.weight": Mask.from_dense(torch.rand(50, 37) > 0.5)})
    assert other.masks["0.weight"] != masks["0.weight"], "a copy's masks are its own"
    assert_held(model, masks)


def test_a_copy_in_the_middle_of_a_change_of_masks_goes_on_with_it() -> None:
    model, masks = small()
    optimizer = MaskedAdamW(model.named_parameters(), masks, storage="compact")
    step(model, optimizer, 0)
    masks["0.weight"] = Mask.from_dense(torch.rand(50, 37) > 0.5)  # for the next step
    twin, other = copy.deepcopy((model, optimizer))
    step(twin, other, 1)
    step(model, optimizer, 1)
    assert_held(twin, masks)
    assert torch.equal(twin[0].weight, model[0].weight)


def test_a_copied_masked_layer_stays_with_its_copied_optimizer() -> None:
    model, masks = small()
    mask_linears(model, masks)
    optimizer = MaskedAdamW(model.parameters(), masks)
    twin, other = copy.deepcopy((model, optimizer))
    moved = Mask.from_dense(torch.rand(50, 37) > 0.5)
    other.change_masks({"0.weight": moved})
    assert twin[0].mask == moved
    assert model[0].mask == masks["0.weight"]
    step(model, optimizer, 0)
    step(twin, other, 0)


def test_masks_are_copied_with_their_model_and_pickled_without_weights() -> None:
    model = nn.Sequential(nn.Linear(300, 200))
    masks = Masks.from_pattern(model, Unstructured(), 0.4)
    twin, copied = copy.deepcopy((model, masks))
    MaskedAdamW(twin.parameters(), copied)
    assert_held(twin, masks)
    alone = copy.deepcopy(masks)
    MaskedAdamW(model.parameters(), alone)
    shallow = copy.copy(masks)
    shallow["0.weight"] = Mask.from_dense(torch.ones(200, 300))
    assert masks["0.weight"] == alone["0.weight"] != shallow["0.weight"]

    stored = pickle.dumps(masks)
    assert len(stored) < 200 * 300 / 8 + 2000
    read = pickle.loads(stored)
    assert read == masks
    with pytest.raises(PatternError, match=r"'0.weight', which is no parameter of this optimizer"):
        MaskedAdamW(model.parameters(), read)
    MaskedAdamW(model.parameters(), read.bind(model))
