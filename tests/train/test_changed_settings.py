"""Options of a group that change in the middle of a run mean what they mean in torch, or are refused with a text."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from ajour.terms.errors import FileError, KernelError
from ajour.train import MaskedAdamW, MaskedSGD
from masked import Reference, assert_held, small

STORAGES = ("dense", "compact")
# what changes before the steps 3, 6 and 9
SGD: dict[str, list[dict[str, Any]]] = {
    "momentum begins": [{"momentum": 0.9}, {}, {}],
    "momentum begins with dampening": [{"momentum": 0.9, "dampening": 0.4}, {}, {"dampening": 0.1}],
    "momentum rests": [{"momentum": 0.9}, {"momentum": 0.0}, {"momentum": 0.5}],
    "nesterov toggles": [{"momentum": 0.9, "nesterov": True}, {"nesterov": False}, {"nesterov": True}],
    "nesterov beside dampening": [{"momentum": 0.9, "nesterov": True, "dampening": 0.3}, {}, {"momentum": 0.0}],
    "decay and direction": [{"weight_decay": 0.1}, {"maximize": True}, {"lr": 1e-3, "weight_decay": 0.0}],
}
ADAMW: dict[str, list[dict[str, Any]]] = {
    "betas": [{"betas": (0.5, 0.9)}, {"betas": (0.95, 0.999)}, {"betas": (0.6, 0.95)}],
    "amsgrad rests": [{"amsgrad": False}, {"amsgrad": True}, {"amsgrad": False}],
    "decay and eps": [{"weight_decay": 0.5}, {"eps": 1e-2}, {"maximize": True, "lr": torch.tensor(1e-3)}],
}


def train(mine: Any, reference: Reference, model: torch.nn.Module, changes: list[dict[str, Any]]) -> None:
    for turn in range(12):
        if turn % 3 == 0 and turn:
            for optimizer in (mine, reference.optimizer):
                optimizer.param_groups[0].update(changes[turn // 3 - 1])
        grads = {name: torch.randn_like(p) for name, p in model.named_parameters()}
        for name, p in model.named_parameters():
            p.grad = grads[name]
        if turn == 7:
            mine.load_state_dict(copy.deepcopy(mine.state_dict()))
        mine.step()
        reference.step(grads, None)


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("case", [*SGD, *ADAMW])
def test_a_change_in_the_middle_means_what_it_means_in_torch(case: str, storage: str) -> None:
    model, masks = small()
    kind: Any = MaskedSGD if case in SGD else MaskedAdamW
    options: dict[str, Any] = {"lr": 1e-2, "weight_decay": 0.0} | ({"amsgrad": True} if "amsgrad" in case else {})
    reference = Reference(model, masks, kind, options)
    mine = kind(model.named_parameters(), masks, storage=storage, **options)
    train(mine, reference, model, SGD.get(case) or ADAMW[case])
    reference.assert_near(model)
    assert_held(model, masks)


@pytest.mark.parametrize("storage", STORAGES)
def test_momentum_begins_after_a_load_of_a_state_without_it(storage: str) -> None:
    model, masks = small()
    reference = Reference(model, masks, MaskedSGD, {"lr": 1e-2})
    theirs = torch.optim.SGD(model.parameters(), lr=1e-2)
    mine = MaskedSGD(model.named_parameters(), masks, lr=1e-2, storage=storage)
    for state in (theirs.state_dict(), mine.state_dict()):
        state["param_groups"][0].update(momentum=0.9, dampening=0.2)
        mine.load_state_dict(state)
    reference.optimizer.param_groups[0].update(momentum=0.9, dampening=0.2)
    train(mine, reference, model, [{}, {}, {}])
    reference.assert_near(model)


def test_a_master_survives_that_a_momentum_begins() -> None:
    model, masks = small()
    model = model.to(torch.bfloat16)
    mine = MaskedSGD(model.named_parameters(), masks, lr=1e-3, master=True, storage="compact")
    for turn in range(3):
        for p in model.parameters():
            p.grad = torch.randn_like(p)
        if turn == 2:
            before = mine.state[model[0].weight]["master"].clone()
            mine.param_groups[0].update(momentum=0.9, lr=0.0)
        mine.step()
    assert torch.equal(mine.state[model[0].weight]["master"], before), "not begun again from rounded weights"


def test_amsgrad_that_begins_late_is_refused_by_text() -> None:
    """As in torch, whose step has no such state then."""
    model, masks = small()
    mine = MaskedAdamW(model.named_parameters(), masks)
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    mine.step()
    before = [p.detach().clone() for p in model.parameters()]
    mine.param_groups[0]["amsgrad"] = True
    with pytest.raises(KernelError, match=r"the state of '0.weight' lacks max_exp_avg_sq, which amsgrad needs"):
        mine.step()
    with pytest.raises(FileError, match=r"the state of '0.weight' holds .*, expected step, .*max_exp_avg_sq"):
        mine.load_state_dict(mine.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    mine.param_groups[0]["amsgrad"] = False
    mine.step()


@pytest.mark.parametrize("storage", STORAGES)
def test_one_cycle_moves_momentum_and_betas_as_in_torch(storage: str) -> None:
    for kind, options in ((MaskedSGD, {"lr": 1e-2, "momentum": 0.9}), (MaskedAdamW, {"lr": 1e-2})):
        model, masks = small()
        reference = Reference(model, masks, kind, options)
        mine: Any = kind(model.named_parameters(), masks, storage=storage, **({"weight_decay": 0.0} | options))
        schedules = [
            torch.optim.lr_scheduler.OneCycleLR(each, 0.05, total_steps=15) for each in (mine, reference.optimizer)
        ]
        for _ in range(14):
            grads = {name: torch.randn_like(p) for name, p in model.named_parameters()}
            for name, p in model.named_parameters():
                p.grad = grads[name]
            mine.step()
            reference.step(grads, None)
            for schedule in schedules:
                schedule.step()
        reference.assert_near(model)
        assert_held(model, masks)
