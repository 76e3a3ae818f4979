"""What a state_dict may hold: copies, hooks as torch calls them, masks before the first step, refusals with a text."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from ajour.terms.errors import FileError
from ajour.train import Mask, MaskedAdamW, MaskedSGD, Masks
from masked import assert_held, small


def step(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 1) -> None:
    for _ in range(steps):
        for p in model.parameters():
            p.grad = torch.randn_like(p)
        optimizer.step()


def test_options_are_copied_with_a_state_tensors_too() -> None:
    model, masks = small()
    first = MaskedAdamW(model.named_parameters(), masks, lr=torch.tensor(1e-3))
    second = MaskedAdamW(model.named_parameters(), masks, lr=torch.tensor(5e-3))
    step(model, first)
    state = first.state_dict()
    second.load_state_dict(state)
    first.param_groups[0]["lr"].fill_(7.0)
    state["param_groups"][0]["betas"] = (0.0, 0.0)
    assert second.param_groups[0]["lr"] == torch.tensor(1e-3)
    assert second.param_groups[0]["betas"] == (0.9, 0.999)


def test_hooks_are_called_as_torch_calls_them() -> None:
    def called(kind: type) -> list[Any]:
        model, _ = small()
        optimizer = kind(model.parameters(), lr=1e-2)
        step(model, optimizer)
        calls: list[Any] = []

        def changed(which: str) -> Any:
            def hook(optimizer: Any, state: Any) -> Any:
                calls.append((which, sorted(state)))
                state["param_groups"][0] = {**state["param_groups"][0], "lr": 0.5 if which == "saved" else 0.25}
                return {**state}

            return hook

        optimizer.register_state_dict_pre_hook(lambda *given: calls.append(("saving", len(given))))
        optimizer.register_state_dict_post_hook(changed("saved"))
        optimizer.register_load_state_dict_pre_hook(lambda *given: calls.append(("first", len(given))))
        optimizer.register_load_state_dict_pre_hook(changed("loading"))
        optimizer.register_load_state_dict_post_hook(lambda *given: calls.append(("loaded", len(given))))
        state = optimizer.state_dict()
        calls.append(state["param_groups"][0]["lr"])
        keys = set(state)
        optimizer.load_state_dict(state)
        calls.append((optimizer.param_groups[0]["lr"], set(state) == keys))
        optimizer.register_step_pre_hook(lambda *given: calls.append(("step", len(given))))
        optimizer.register_step_post_hook(lambda *given: calls.append(("stepped", len(given))))
        step(model, optimizer)
        return calls

    mine = called(MaskedAdamW)
    assert mine == called(torch.optim.AdamW)
    assert ("loaded", 1) in mine


@pytest.mark.parametrize("storage", ["dense", "compact"])
def test_a_mask_that_changed_before_the_first_gradient_is_in_the_state(storage: str) -> None:
    model, masks = small()
    optimizer = MaskedAdamW(model.named_parameters(), masks)
    moved = Mask.from_dense(torch.rand(50, 37) > 0.8)
    optimizer.change_masks({"0.weight": moved})
    model[2].bias.grad = torch.randn(11)
    optimizer.step()
    twin, others = small()
    other = MaskedAdamW(twin.named_parameters(), others, storage=storage)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert others["0.weight"] == moved
    assert_held(twin, others)
    step(twin, other, 2)
    assert_held(twin, others)
    assert [int(other.state[p]["step"]) for p in twin.parameters()] == [2, 2, 2, 3]
    step(model, optimizer, 2)
    assert [int(optimizer.state[p]["step"]) for p in model.parameters()] == [2, 2, 2, 3]


def test_what_is_no_state_is_refused_with_a_text() -> None:
    model, masks = small()
    optimizer = MaskedAdamW(model.named_parameters(), masks)
    with pytest.raises(FileError, match=r"holds nothing and no 'state'; expected what an optimizer's state_dict\(\)"):
        optimizer.load_state_dict({})
    with pytest.raises(FileError, match=r"holds state and no 'param_groups'"):
        optimizer.load_state_dict({"state": {}})
    with pytest.raises(FileError, match=r"holds 0.weight, 0.bias, .* and no 'state'"):
        optimizer.load_state_dict(dict(model.state_dict()))


def test_an_adam_whose_decay_is_not_decoupled_is_refused() -> None:
    model, masks = small()
    optimizer = MaskedAdamW(model.named_parameters(), masks)
    for decay in (0.1, 0.0):
        theirs = torch.optim.Adam(model.parameters(), weight_decay=decay)
        step(model, theirs)
        if decay:
            with pytest.raises(FileError, match=r"group 0 of the state is Adam's, with a weight decay of 0.1"):
                optimizer.load_state_dict(theirs.state_dict())
        else:
            optimizer.load_state_dict(theirs.state_dict())
    step(model, optimizer)


@pytest.mark.parametrize("storage", ["dense", "compact"])
@pytest.mark.parametrize("how", [{"fused": True}, {"foreach": True}, {"capturable": False}, {"amsgrad": True}], ids=str)
def test_a_state_of_any_of_torchs_implementations_goes_on_as_torch_would(how: dict[str, Any], storage: str) -> None:
    model, _ = small()
    theirs = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1, **how)
    step(model, theirs, 3)
    twin = copy.deepcopy(model)
    optimizer = MaskedAdamW(twin.named_parameters(), Masks({}), storage=storage)
    optimizer.load_state_dict(copy.deepcopy(theirs.state_dict()))
    for _ in range(3):
        for p, q in zip(model.parameters(), twin.parameters(), strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        theirs.step()
        optimizer.step()
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(q, p, rtol=2e-5, atol=2e-6)


def test_parameters_in_another_order_are_refused_if_named() -> None:
    model, masks = small()
    optimizer = MaskedSGD(model.named_parameters(), masks, momentum=0.9)
    step(model, optimizer)
    other = MaskedSGD(list(model.named_parameters())[::-1], masks, momentum=0.9)
    with pytest.raises(FileError, match=r"the state is for '0.weight' where this optimizer has '2.bias'"):
        other.load_state_dict(optimizer.state_dict())
