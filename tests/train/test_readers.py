"""A mask that changes for an optimizer changes for the masked layers that read the weight, or is refused by name."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from ajour.terms.errors import PatternError
from ajour.terms.pattern import Block, Pattern, Unstructured
from ajour.train import GradualPruning, Mask, MaskedAdamW, MaskedSGD, Masks, Regrow, mask_linears
from masked import assert_held


def parts(
    pattern: Pattern = Unstructured(),  # noqa: B008
    storage: str = "dense",
    layers: str = "*",
) -> tuple[nn.Module, Masks, MaskedSGD]:
    model = nn.Sequential(nn.Linear(32, 48), nn.Tanh(), nn.Linear(48, 16))
    masks = Masks.from_pattern(model, pattern, 0.4, layers)
    mask_linears(model, masks, pattern)
    return model, masks, MaskedSGD(model.named_parameters(), masks, lr=0.05, momentum=0.9, storage=storage)


def step(model: nn.Module, optimizer: Any) -> None:
    optimizer.zero_grad()
    model(torch.randn(8, 32)).square().mean().backward()
    optimizer.step()


def other_mask() -> Mask:
    return Mask.from_dense(torch.rand(48, 32) > 0.5)


@pytest.mark.parametrize("storage", ["dense", "compact"])
@pytest.mark.parametrize("pattern", [Unstructured(), Block(8, 8)], ids=str)
def test_what_set_grows_learns_in_masked_layers(pattern: Pattern, storage: str) -> None:
    model, masks, optimizer = parts(pattern, storage, "0")
    regrow = Regrow(optimizer, method="set", until=100, every=3, fraction=0.5, pattern=pattern)
    for _ in range(3):
        before = masks["0.weight"].dense()
        model(torch.randn(8, 32)).square().mean().backward()
        if regrow.step() is None:
            optimizer.step()
    grown = masks["0.weight"].dense() & ~before
    assert grown.any()
    assert model[0].mask == masks["0.weight"]
    for _ in range(2):
        step(model, optimizer)
    assert (model[0].weight[grown] != 0).all(), "what grew must learn"
    assert_held(model, masks)


def test_gradual_pruning_closes_the_masks_of_layers_too() -> None:
    model, masks, optimizer = parts()
    schedule = GradualPruning(optimizer, 0.1, until=6, every=2, initial=0.4)
    for _ in range(6):
        step(model, optimizer)
        schedule.step()
        assert [model[0].mask, model[2].mask] == list(masks.values())
    assert masks.density() == pytest.approx(0.1, abs=0.01)


CHANGES: dict[str, Callable[[Masks, Any, Mask], None]] = {
    "shared masks": lambda masks, optimizer, new: masks.update({"0.weight": new}),
    "change_masks": lambda masks, optimizer, new: optimizer.change_masks({"0.weight": new}),
    "a loaded state": lambda masks, optimizer, new: optimizer.load_state_dict(state_with(optimizer, new)),
}


def state_with(optimizer: Any, mask: Mask) -> dict[str, Any]:
    twin = copy.deepcopy(optimizer)
    twin.change_masks({"0.weight": mask})
    state: dict[str, Any] = twin.state_dict()
    return state


@pytest.mark.parametrize("change", CHANGES)
def test_every_way_to_change_a_mask_reaches_the_layer(change: str) -> None:
    model, masks, optimizer = parts()
    step(model, optimizer)
    new = other_mask()
    CHANGES[change](masks, optimizer, new)
    step(model, optimizer)
    assert model[0].mask == new == masks["0.weight"]
    step(model, optimizer)
    assert_held(model, masks)
    assert (model[0].weight[new.dense()] != 0).all()


def test_an_optimizer_of_other_masks_brings_them_along() -> None:
    model, masks, _ = parts()
    masks = Masks({"0.weight": other_mask()})
    MaskedAdamW(model.named_parameters(), masks)
    assert model[0].mask == masks["0.weight"]


def test_a_mask_that_cuts_the_layer_s_blocks_is_refused_before_anything_changes() -> None:
    model, masks, optimizer = parts(Block(8, 8))
    step(model, optimizer)
    old, weight = masks["0.weight"], model[0].weight.detach().clone()
    with pytest.raises(PatternError, match=r"'0.weight': its mask cuts through blocks"):
        optimizer.change_masks({"0.weight": other_mask()})
    assert masks["0.weight"] is old
    masks["0.weight"] = other_mask()
    with pytest.raises(PatternError, match=r"'0.weight': its mask cuts through blocks"):
        step(model, optimizer)
    assert torch.equal(model[0].weight, weight)
    assert model[0].mask == old


@pytest.mark.parametrize("how", ["set_mask", "load", "written to"])
def test_a_layer_that_has_another_mask_than_its_optimizer_is_refused_by_name(how: str) -> None:
    model, masks, optimizer = parts(storage="compact")
    step(model, optimizer)
    new, old = other_mask(), Mask(masks["0.weight"].bits.clone(), (48, 32))
    if how == "set_mask":
        model[0].set_mask(new)
    elif how == "load":
        twin = copy.deepcopy(model)
        twin[0].set_mask(new)
        model.load_state_dict(twin.state_dict())
    else:  # as DDP does with buffers of a process that has other masks
        model[0].bits.copy_(new.bits)
    before = model[2].weight.detach().clone()
    with pytest.raises(PatternError, match=r"'0.weight' has another mask in its MaskedLinear"):
        step(model, optimizer)
    assert masks["0.weight"] == old, "a mask never changes"
    assert torch.equal(model[2].weight, before)
    optimizer.change_masks({"0.weight": model[0].mask})
    step(model, optimizer)
    assert_held(model, masks)
    assert masks["0.weight"] == new


def test_the_same_mask_written_again_is_no_change() -> None:
    model, _masks, optimizer = parts(Block(8, 8))
    step(model, optimizer)
    products = model[0]._block_products()
    model[0].bits.copy_(model[0].bits.clone())
    step(model, optimizer)
    assert model[0]._block_products() is products, "and nothing is prepared anew"


def test_rigl_refuses_masked_layers_whenever_they_come() -> None:
    model, masks, optimizer = parts()
    with pytest.raises(PatternError, match=r"'0.weight' is the weight of a MaskedLinear.*use method='set'"):
        Regrow(optimizer, until=10)
    model = nn.Sequential(nn.Linear(32, 16))
    masks = Masks.from_pattern(model, Unstructured(), 0.4)
    optimizer = MaskedSGD(model.named_parameters(), masks)
    regrow = Regrow(optimizer, until=10, every=1)
    mask_linears(model, masks)
    model(torch.randn(8, 32)).square().mean().backward()
    with pytest.raises(PatternError, match=r"'0.weight' is the weight of a MaskedLinear"):
        regrow.step()
