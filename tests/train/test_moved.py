"""A step follows or refuses by name whatever was put in the place of what the last one read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from ajour.terms.errors import AjourError, PatternError
from ajour.train import Mask, MaskedAdamW, MaskedSGD, Masks
from masked import small


def stepped(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    optimizer.step()


def half_state(p: nn.Parameter, state: dict[str, Any]) -> None:
    state["exp_avg"] = state["exp_avg"].bfloat16()


def half_data(p: nn.Parameter, state: dict[str, Any]) -> None:
    state["exp_avg_sq"].data = state["exp_avg_sq"].data.half()


def turned_state(p: nn.Parameter, state: dict[str, Any]) -> None:
    state["exp_avg"] = state["exp_avg"].t()


def short_gradient(p: nn.Parameter, state: dict[str, Any]) -> None:
    p.grad.data = torch.ones(2, 2)


def short_weight(p: nn.Parameter, state: dict[str, Any]) -> None:
    p.data = p.data[:4]
    p.grad = torch.ones_like(p)


def other_weight(p: nn.Parameter, state: dict[str, Any]) -> None:
    p.data = p.data.view(2, -1)
    p.grad = torch.ones_like(p)


SPOILT: dict[Callable[..., None], str] = {
    half_state: "exp_avg of '0.weight' is torch.bfloat16 on cpu; expected torch.float32 on cpu, contiguous",
    half_data: "exp_avg_sq of '0.weight' is torch.float16 on cpu; expected torch.float32",
    turned_state: "exp_avg of '0.weight' is torch.float32 on cpu that is not contiguous; expected",
    short_gradient: r"'0.weight' has a gradient \(2, 2\); expected",
    short_weight: r"'0.weight' is \(4, 37\) by now, its state is of \(",
    other_weight: r"'0.weight' is \(2, .*\) by now, its state is of \(",
}


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("spoil", SPOILT, ids=lambda spoil: spoil.__name__)
def test_what_no_kernel_could_take_is_refused_before_anything_moves(spoil: Callable[..., None], masked: bool) -> None:
    model, masks = small()
    optimizer = MaskedAdamW(model.named_parameters(), masks if masked else None)
    stepped(model, optimizer)
    weight = model[0].weight
    spoil(weight, optimizer.state[weight])
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(AjourError, match=SPOILT[spoil]):
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_a_weight_that_outgrew_its_mask_is_refused_without_a_state_too() -> None:
    model, masks = small()
    optimizer = MaskedSGD(model.named_parameters(), masks, lr=0.1)
    stepped(model, optimizer)
    model[0].weight.data = torch.ones(4096, 64)
    model[0].weight.grad = torch.ones(4096, 64)
    with pytest.raises(AjourError, match=r"'0.weight'"):
        optimizer.step()
    assert model[0].weight.eq(1).all()


@pytest.mark.parametrize("kind", [MaskedAdamW, MaskedSGD])
@pytest.mark.parametrize("change", ["replaced", "all replaced", "moved"])
def test_groups_are_those_of_now(kind: Any, change: str) -> None:
    made = [nn.Parameter(torch.ones(6)) for _ in range(3)]
    optimizer = kind([{"params": made[:2], "lr": 1e-3}, {"params": made[2:], "lr": 0.5}], None, weight_decay=0.0)

    def step() -> list[float]:
        before = [p.detach()[0].item() for p in made]
        for p in made:
            p.grad = torch.ones(6)
        optimizer.step()
        return [abs(p.detach()[0].item() - old) for p, old in zip(made, before, strict=True)]

    first = step()
    assert first[1] < 0.01 < first[2]
    if change == "replaced":
        optimizer.param_groups[0] = {**optimizer.param_groups[0], "lr": 0.5}
    elif change == "all replaced":
        optimizer.param_groups = [{**group, "lr": 0.5} for group in optimizer.param_groups]
    else:
        optimizer.param_groups[1]["params"].insert(0, optimizer.param_groups[0]["params"].pop())
    assert step()[1] > 0.1


@pytest.mark.parametrize("storage", ["dense", "compact"])
def test_a_state_brings_its_masks_though_others_were_set_since_the_last_step(storage: str) -> None:
    model, masks = small()
    optimizer = MaskedAdamW(model.named_parameters(), masks, storage=storage)
    stepped(model, optimizer)
    saved, before = optimizer.state_dict(), masks["0.weight"]
    masks["0.weight"] = Mask.from_dense(~before.dense())
    optimizer.load_state_dict(saved)
    assert masks["0.weight"] == before
    stepped(model, optimizer)
    assert model[0].weight[before.dense()].ne(0).all()


def test_a_step_that_a_scaler_skips_holds_zeros() -> None:
    model, masks = small()
    optimizer = MaskedSGD(model.named_parameters(), masks, lr=0.1)
    stepped(model, optimizer)
    with torch.no_grad():
        model[0].weight.add_(1.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    scaler.scale(torch.ones(()))
    model[2].bias.grad = torch.full_like(model[2].bias, torch.inf)
    before = model[2].bias.detach().clone()
    scaler.step(optimizer)
    assert torch.equal(model[2].bias, before), "it was skipped"
    assert not model[0].weight[~masks["0.weight"].dense()].any()


def test_other_masks_in_place_of_the_optimizers_are_followed() -> None:
    model, masks = small()
    optimizer = MaskedSGD(model.named_parameters(), masks, lr=0.1)
    stepped(model, optimizer)
    other = Masks.from_tensors({name: ~mask.dense() for name, mask in masks.items()})
    while other.version < masks.version:
        other["0.weight"] = other["0.weight"]
    optimizer.masks = other
    stepped(model, optimizer)
    assert not model[0].weight[~other["0.weight"].dense()].any()
    optimizer.masks = dict(masks)
    with pytest.raises(PatternError, match=r"optimizer.masks is a train.Masks, found dict"):
        stepped(model, optimizer)
