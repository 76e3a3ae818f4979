"""Zeros are exact after a step in which a parameter had no gradient; what masks became is checked before a step."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ajour.terms.errors import PatternError
from ajour.train import Mask, MaskedAdamW, Masks
from ajour.train.optimizer import MaskedOptimizer
from masked import assert_held, small

STORAGES = ("dense", "compact")


def made(storage: str) -> tuple[nn.Module, Masks, MaskedOptimizer]:
    model, masks = small()
    return model, masks, MaskedAdamW(model.named_parameters(), masks, lr=1e-2, storage=storage)


def step_without(model: nn.Module, optimizer: MaskedOptimizer, left_out: str) -> None:
    for name, p in model.named_parameters():
        p.grad = None if name.startswith(left_out) else torch.randn_like(p)
    optimizer.step()


def loaded(model: nn.Module) -> None:
    model.load_state_dict({name: torch.randn_like(t) for name, t in model.state_dict().items()})


def edited(model: nn.Module) -> None:
    with torch.no_grad():
        model[0].weight.fill_(torch.nan)


def edited_as_data(model: nn.Module) -> None:
    model[0].weight.data.fill_(-0.0)


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("edit", [loaded, edited, edited_as_data])
@pytest.mark.parametrize("before", [0, 2])
def test_zeros_come_back_without_a_gradient(edit: object, storage: str, before: int) -> None:
    model, masks, optimizer = made(storage)
    for _ in range(before):
        step_without(model, optimizer, "0.weight")
    for _ in range(3):
        edit(model)  # type: ignore[operator]
        kept = model[0].weight.detach()[masks["0.weight"].dense()]
        step_without(model, optimizer, "0.weight")
        assert_held(model, masks)
        now = model[0].weight.detach()[masks["0.weight"].dense()]
        assert torch.equal(now.view(torch.int32), kept.view(torch.int32)), "and what is kept stays as it was edited"
    model.load_state_dict({name: torch.randn_like(t) for name, t in model.state_dict().items()})
    optimizer.zero_grad()
    optimizer.step()
    assert_held(model, masks)


@pytest.mark.parametrize("edit", [loaded, edited])
def test_a_frozen_parameter_is_cleared_when_it_was_edited_and_only_then(
    edit: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, masks, optimizer = made("dense")
    model[0].weight.requires_grad_(False)
    cleared: list[Tensor] = []
    apply = Mask.apply_
    monkeypatch.setattr(Mask, "apply_", lambda self, weight: (cleared.append(weight), apply(self, weight))[1])
    for turn in range(4):
        if turn == 2:
            edit(model)  # type: ignore[operator]
        step_without(model, optimizer, "0.weight")
        assert_held(model, masks)
        assert len(cleared) == (turn >= 2), "a step must not go through frozen weights for nothing"


@pytest.mark.parametrize("storage", STORAGES)
def test_a_changed_mask_holds_without_a_gradient(storage: str) -> None:
    model, masks, optimizer = made(storage)
    step_without(model, optimizer, "none")
    masks["0.weight"] = Mask.from_dense(torch.rand(50, 37) > 0.5)
    step_without(model, optimizer, "0.weight")
    assert_held(model, masks)


@pytest.mark.parametrize("before", [0, 2])
def test_a_mask_of_a_stranger_that_comes_later_is_refused_before_the_next_step(before: int) -> None:
    model, masks, optimizer = made("dense")
    for _ in range(before):
        step_without(model, optimizer, "none")
    weights = [p.detach().clone() for p in model.parameters()]
    masks["3.weight"] = Mask.from_dense(torch.ones(2, 2))
    with pytest.raises(PatternError, match=r"'3.weight', which is no parameter of this optimizer"):
        step_without(model, optimizer, "none")
    assert all(torch.equal(a, b) for a, b in zip(weights, model.parameters(), strict=True))
    del masks["3.weight"]
    step_without(model, optimizer, "none")
    assert_held(model, masks)


@pytest.mark.parametrize("storage", STORAGES)
def test_a_model_that_changes_its_type_is_followed(storage: str) -> None:
    for dtype in (torch.float64, torch.bfloat16):
        model, masks, optimizer = made(storage)
        step_without(model, optimizer, "none")
        model.to(dtype)
        for _ in range(2):
            step_without(model, optimizer, "none")
            assert_held(model, masks)
        precise = torch.promote_types(dtype, torch.float32)
        assert {s["exp_avg"].dtype for s in optimizer.state.values()} == {precise}
        assert all(int(s["step"]) == 3 for s in optimizer.state.values())
