"""A state goes to a file and back, between storages, masks and torch's own optimizers; another model's is refused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from ajour.terms.errors import FileError, PatternError
from ajour.train import Mask, MaskedAdamW, MaskedSGD, Masks
from masked import assert_held, small

STORAGES = ("dense", "compact")


def run(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 3) -> None:
    for _ in range(steps):
        for p in model.parameters():
            p.grad = torch.randn_like(p)
        optimizer.step()


def made(kind: Callable[..., Any] = MaskedAdamW, **options: Any) -> tuple[nn.Module, Masks, Any]:
    model, masks = small()
    return model, masks, kind(model.named_parameters(), masks, **options)


@pytest.mark.parametrize("after", STORAGES)
@pytest.mark.parametrize("before", STORAGES)
@pytest.mark.parametrize("amsgrad", [False, True])
def test_a_state_goes_on_bit_for_bit_in_either_storage(before: str, after: str, amsgrad: bool) -> None:
    model, masks, optimizer = made(storage=before, amsgrad=amsgrad)
    run(model, optimizer)
    twin = copy.deepcopy(model)
    other = MaskedAdamW(twin.named_parameters(), Masks(dict(masks)), storage=after)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        p.grad = torch.randn_like(p)
        q.grad = p.grad.clone()
    optimizer.step()
    other.step()
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), twin.parameters(), strict=True))
    shapes = {tuple(t.shape) for name, t in other.state[twin[0].weight].items() if name.startswith("exp")}
    assert shapes == {(masks["0.weight"].kept,) if after == "compact" else (50, 37)}


def test_a_dense_state_of_torch_is_taken_and_masked() -> None:
    model, masks = small()
    theirs = torch.optim.AdamW(model.parameters(), lr=3e-3)
    run(model, theirs)
    for storage in STORAGES:
        optimizer = MaskedAdamW(model.named_parameters(), masks, storage=storage)
        optimizer.load_state_dict(theirs.state_dict())
        assert optimizer.param_groups[0]["lr"] == 3e-3
        held = optimizer.state[model[0].weight]
        kept = masks["0.weight"].dense()
        wanted = theirs.state[model[0].weight]["exp_avg"]
        assert torch.equal(held["exp_avg"], wanted[kept] if storage == "compact" else torch.where(kept, wanted, 0.0))
        assert held["step"] == 3
        run(model, optimizer)
        assert_held(model, masks)


def test_a_master_is_kept_dropped_or_begun_as_the_optimizer_asks() -> None:
    for before in (False, True):
        for after in (False, True):
            model, masks = small()
            model = model.to(torch.bfloat16)
            first = MaskedAdamW(model.named_parameters(), masks, master=before, storage="compact")
            run(model, first)
            second = MaskedAdamW(model.named_parameters(), masks, master=after)
            second.load_state_dict(first.state_dict())
            state = second.state[model[0].weight]
            assert ("master" in state) == after
            if after:
                assert torch.equal(state["master"].bfloat16(), model[0].weight)
                exact = state["master"] == model[0].weight.float()
                assert bool(exact.all()) == (not before), "a saved master has more bits than the weight"


@pytest.mark.parametrize("storage", STORAGES)
def test_changed_masks_keep_what_stays_and_regrow_at_zero(storage: str) -> None:
    model, masks, optimizer = made(storage=storage, betas=(0.9, 0.9))
    run(model, optimizer)
    old = masks["0.weight"].dense()
    new = torch.rand(50, 37) > 0.5
    before = model[0].weight.detach().clone()
    moments = torch.zeros(50, 37)
    moments[old] = (
        optimizer.state[model[0].weight]["exp_avg"].view(-1)[: int(old.sum())]
        if storage == "compact"
        else (optimizer.state[model[0].weight]["exp_avg"][old])
    )
    optimizer.change_masks({"0.weight": Mask.from_dense(new)})
    assert torch.equal(masks["0.weight"].dense(), new), "the masks change with the optimizer"
    assert torch.equal(model[0].weight.detach(), torch.where(new & old, before, 0.0))
    found = optimizer.state[model[0].weight]["exp_avg"]
    wanted = torch.where(new & old, moments, 0.0)
    assert torch.equal(found, wanted[new] if storage == "compact" else wanted)
    run(model, optimizer)
    assert_held(model, masks)
    assert (model[0].weight[new & ~old] != 0).all(), "regrown weights move"


def test_masks_that_others_changed_hold_from_the_next_step_on() -> None:
    model, masks, optimizer = made(storage="compact")
    run(model, optimizer)
    masks["2.weight"] = Mask.from_dense(torch.rand(11, 50) > 0.7)
    run(model, optimizer, 1)
    assert_held(model, masks)
    assert len(optimizer.state[model[2].weight]["exp_avg"]) == masks["2.weight"].kept


def test_a_state_brings_its_masks() -> None:
    model, _masks, optimizer = made()
    run(model, optimizer)
    moved = Mask.from_dense(torch.rand(50, 37) > 0.8)
    optimizer.change_masks({"0.weight": moved})
    twin, others, other = made(storage="compact")
    other.load_state_dict(optimizer.state_dict())
    assert others["0.weight"] == moved
    assert_held(twin, others)


def test_changes_that_do_not_fit_are_refused_before_anything_changes() -> None:
    model, masks, optimizer = made()
    before = dict(masks)
    new = Mask.from_dense(torch.zeros(50, 37))
    with pytest.raises(PatternError, match=r"'0.bias' has no mask in this optimizer; it has 0.weight, 2.weight"):
        optimizer.change_masks({"0.weight": new, "0.bias": Mask.from_dense(torch.ones(50))})
    with pytest.raises(PatternError, match=r"'2.weight': its mask is \(50, 37\), the parameter \(11, 50\)"):
        optimizer.change_masks({"0.weight": new, "2.weight": new})
    assert dict(masks) == before
    del masks["0.weight"]
    with pytest.raises(PatternError, match=r"the mask of '0.weight' was taken away"):
        run(model, optimizer)


def damaged(change: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    model, _, optimizer = made()
    run(model, optimizer)
    state = copy.deepcopy(optimizer.state_dict())
    change(state)
    return state


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda s: s["param_groups"].append(s["param_groups"][0]), "2 parameter groups, this optimizer 1"),
        (lambda s: s["param_groups"][0]["params"].pop(), r"3 parameters, here it has 4 \(0.weight, 0.bias"),
        (
            lambda s: s["param_groups"][0]["param_names"].reverse(),
            "is for '2.bias' where this optimizer has '0.weight'",
        ),
        (lambda s: s["state"][0].pop("exp_avg"), "the state of '0.weight' holds .*another kind of optimizer"),
        (lambda s: s["state"][0].update(momentum_buffer=torch.zeros(1)), "another kind of optimizer"),
        (lambda s: s["state"][2].update(exp_avg=torch.zeros(4, 4)), r"exp_avg of '2.weight' is \(4, 4\)"),
        (lambda s: s["state"][2].update(mask=torch.zeros(4, dtype=torch.uint8)), "the mask of '2.weight' is another"),
        (lambda s: s["state"][1].update(mask=s["state"][0]["mask"]), "holds a mask for '0.bias', this optimizer none"),
    ],
    ids=str,
)
def test_a_state_of_another_model_is_refused_by_name_and_nothing_changes(change: Any, match: str) -> None:
    state = damaged(change)
    model, _masks, optimizer = made(storage="compact")
    run(model, optimizer)
    before = copy.deepcopy(optimizer.state_dict())
    weights = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(FileError, match=match):
        optimizer.load_state_dict(state)
    after = optimizer.state_dict()
    assert all(
        torch.equal(t, after["state"][i][name]) for i, held in before["state"].items() for name, t in held.items()
    )
    assert all(torch.equal(a, b) for a, b in zip(weights, model.parameters(), strict=True))


def test_sgd_and_adamw_do_not_take_each_others_states() -> None:
    model, _, optimizer = made(MaskedSGD, momentum=0.9)
    run(model, optimizer)
    _, _, other = made()
    with pytest.raises(FileError, match=r"'0.weight' holds mask, momentum_buffer, step, expected step, exp_avg"):
        other.load_state_dict(optimizer.state_dict())
