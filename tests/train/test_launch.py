"""What a step keeps from the one before is only kept while it is true."""

from __future__ import annotations

import copy
import weakref

import pytest
import torch
from torch import nn

from ajour.ops.masked_update import rows
from ajour.terms.errors import KernelError
from ajour.terms.pattern import Unstructured
from ajour.train import MaskedAdamW, MaskedSGD, Masks
from masked import Reference, assert_held, small


def test_a_table_is_made_once_while_nothing_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    monkeypatch.setattr(
        "ajour.train.launch.rows", lambda slices, grads: made.append(len(slices)) or rows.rows(slices, grads)
    )
    model, masks = small()
    optimizer = MaskedAdamW(model.named_parameters(), masks)
    for _ in range(5):
        optimizer.zero_grad()
        for p in model.parameters():
            p.grad = torch.randn_like(p)
        optimizer.step()
    assert made == [4]


@pytest.mark.parametrize("storage", ["dense", "compact"])
def test_whatever_moves_between_steps_is_followed(storage: str) -> None:
    model, masks = small()
    reference = Reference(model, masks, MaskedAdamW, {"lr": 1e-2})
    optimizer = MaskedAdamW(model.named_parameters(), masks, lr=1e-2, weight_decay=0.0, storage=storage)
    for turn in range(12):
        grads = {name: torch.randn_like(p) for name, p in model.named_parameters()}
        if turn % 3 == 2:
            del grads["0.bias"]  # a parameter without a gradient is left out
        for name, p in model.named_parameters():
            p.grad = grads.get(name)
        if turn == 3:
            model[0].weight.data = model[0].weight.data.clone()
        if turn == 5:
            state = optimizer.state[model[2].weight]
            state["exp_avg"] = state["exp_avg"].clone()
        if turn == 6:
            optimizer.state[model[2].bias]["step"] = optimizer.state[model[2].bias]["step"].clone()
        if turn == 7:
            optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        if turn == 9:
            model[2].weight.data = model[2].weight.data.t().contiguous().t()
        optimizer.step()
        for name, p in reference.model.named_parameters():
            p.grad = None if name not in grads else grads[name].double() * reference.kept.get(name, 1.0)
        reference.optimizer.step()
        reference.hold()
        assert_held(model, masks)
    reference.assert_near(model)
    assert [int(optimizer.state[p]["step"]) for p in model.parameters()] == [12, 8, 12, 12]


def test_a_group_that_begins_to_have_momentum_or_comes_later_is_followed() -> None:
    first, second = nn.Parameter(torch.ones(6)), nn.Parameter(torch.ones(6))
    optimizer = MaskedSGD([first], lr=0.5)
    for p in (first, second):
        p.grad = torch.ones(6)
    optimizer.step()
    optimizer.add_param_group({"params": [second], "lr": 0.25})
    optimizer.step()
    assert (first.tolist(), second.tolist()) == ([0.0] * 6, [0.75] * 6)


def test_gradients_are_let_go_and_a_failed_step_counts_nothing() -> None:
    model, masks = small()
    optimizer = MaskedAdamW(model.named_parameters(), masks)
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    optimizer.step()
    grad = weakref.ref(model[0].weight.grad)
    model[0].weight.grad = torch.randn_like(model[0].weight)
    assert grad() is None
    before = [p.detach().clone() for p in model.parameters()]
    model[2].bias.grad = None
    model[2].bias.grad_dtype = torch.float64
    model[2].bias.grad = torch.randn(11, dtype=torch.float64)
    with pytest.raises(KernelError, match=r"'2.bias' has a gradient of torch.float64; expected torch.float32"):
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert all(int(state["step"]) == 1 for state in optimizer.state.values())


def test_a_graph_that_needs_the_old_weights_notices_the_step() -> None:
    model, masks = small()
    optimizer = MaskedAdamW(model.named_parameters(), masks)
    loss = model(torch.randn(3, 37)).square().sum()
    loss.backward(retain_graph=True)
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
    weight = nn.Parameter(torch.randn(4, 4))
    y = (weight * weight).sum()
    Masks.from_pattern(nn.Sequential(nn.Linear(4, 4)), Unstructured(), 0.5)["0.weight"].apply_(weight)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()
