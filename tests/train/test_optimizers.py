"""A hundred steps equal the masked dense ones of torch, and what the masks don't keep is +0.0 after each of them."""

from __future__ import annotations

import io
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ajour.nn import linear_of
from ajour.terms.pattern import NM, Block, Pattern, Unstructured
from ajour.train import Mask, MaskedAdamW, MaskedSGD, Masks, clip_grad_norm_, mask_gradients_
from masked import Reference, assert_held, small
from pruned import keep_mask, matrix_of

KINDS: dict[str, tuple[type, dict[str, Any]]] = {
    "adamw": (MaskedAdamW, {"lr": 1e-2, "betas": (0.8, 0.95)}),
    "momentum": (MaskedSGD, {"lr": 1e-2, "momentum": 0.9}),
    "sgd": (MaskedSGD, {"lr": 1e-1}),
}
FURTHER: list[tuple[type, dict[str, Any]]] = [
    (MaskedAdamW, {"amsgrad": True, "maximize": True}),
    (MaskedAdamW, {"lr": torch.tensor(3e-3), "eps": 1e-4}),
    (MaskedSGD, {"lr": 1e-2, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
    (MaskedSGD, {"lr": 1e-2, "momentum": 0.9, "dampening": 0.4, "maximize": True}),
]


class Trained:
    """A model under a masked optimizer, with random gradients that hold NaN where the masks don't keep a weight."""

    def __init__(self, kind: type, options: dict[str, Any], storage: str, amp: bool) -> None:
        self.kind, self.options, self.storage, self.amp = kind, options, storage, amp
        self.model, self.masks = small()
        self.optimizer = kind(self.model.named_parameters(), self.masks, storage=storage, **options)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, enabled=amp)
        self.scaler.scale(torch.ones(()))

    def accumulate(self, scale: float) -> dict[str, Tensor]:
        """Adds to every gradient; returns what was added before scaling."""
        added = {name: torch.randn_like(p) for name, p in self.model.named_parameters()}
        for name, p in self.model.named_parameters():
            p.grad = (torch.zeros_like(p) if p.grad is None else p.grad) + added[name] * scale
            if name in self.masks:
                p.grad[~self.masks[name].dense()] = torch.nan
        return added

    def step(self, clip: float | None) -> None:
        pairs = list(self.model.named_parameters())
        if self.amp:
            mask_gradients_(pairs, self.masks)
        if clip is not None:
            self.scaler.unscale_(self.optimizer)
            clip_grad_norm_(pairs, self.masks, clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()

    def reload(self) -> None:
        """Goes on with another model, other masks and an optimizer of the other storage, from a file."""
        file = io.BytesIO()
        torch.save([self.model.state_dict(), self.optimizer.state_dict()], file)
        file.seek(0)
        weights, state = torch.load(file)
        self.storage = "dense" if self.storage == "compact" else "compact"
        self.model, self.masks = small()
        self.optimizer = self.kind(self.model.named_parameters(), self.masks, storage=self.storage, **self.options)
        self.model.load_state_dict(weights)
        self.optimizer.load_state_dict(state)


@pytest.mark.parametrize("storage", ["dense", "compact"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_hundred_steps_equal_masked_dense_ones(kind: str, storage: str) -> None:
    for decay, amp, clip, accumulate, reload in product((0.0, 0.1), (False, True), (None, 1.0), (1, 2), (False, True)):
        optimizer, options = KINDS[kind]
        options = options | {"weight_decay": decay}
        mine = Trained(optimizer, options, storage, amp)
        reference = Reference(mine.model, mine.masks, optimizer, options)
        assert_held(mine.model, mine.masks)
        for turn in range(100):
            added = [mine.accumulate(mine.scaler.get_scale() if amp else 1.0) for _ in range(accumulate)]
            mine.step(clip)
            grads = {name: torch.stack([each[name] for each in added]).sum(0) for name in added[0]}
            reference.step(grads, clip)
            assert_held(mine.model, mine.masks)
            if reload and turn == 50:
                mine.reload()
        reference.assert_near(mine.model)


@pytest.mark.parametrize("storage", ["dense", "compact"])
@pytest.mark.parametrize(("kind", "options"), FURTHER, ids=lambda case: str(case)[:40])
def test_torchs_further_arguments_mean_the_same(kind: type, options: dict[str, Any], storage: str) -> None:
    mine = Trained(kind, {"weight_decay": 0.0} | options, storage, False)
    reference = Reference(mine.model, mine.masks, kind, options)
    for _ in range(30):
        grads = mine.accumulate(1.0)
        mine.step(None)
        reference.step(grads, None)
    reference.assert_near(mine.model)
    assert_held(mine.model, mine.masks)


def test_defaults_are_torchs() -> None:
    model, _ = small()
    for mine, theirs in ((MaskedAdamW, torch.optim.AdamW), (MaskedSGD, torch.optim.SGD)):
        ours = mine(model.parameters()).defaults
        torchs = theirs(model.parameters()).defaults
        assert {name: value for name, value in ours.items() if name != "capturable"}.items() <= torchs.items()


@pytest.mark.parametrize("kind", KINDS)
def test_without_masks_it_is_torchs_optimizer(kind: str) -> None:
    model, _ = small()
    optimizer, options = KINDS[kind]
    reference = Reference(model, Masks({}), optimizer, options | {"weight_decay": 0.1})
    mine = optimizer(model.parameters(), **options, weight_decay=0.1)
    for _ in range(20):
        grads = {name: torch.randn_like(p) for name, p in model.named_parameters()}
        for name, p in model.named_parameters():
            p.grad = grads[name]
        mine.step()
        reference.step(grads, None)
    reference.assert_near(model)


def test_groups_have_their_own_numbers_and_a_scheduler_moves_them() -> None:
    model, masks = small()
    weights = [(name, p) for name, p in model.named_parameters() if name.endswith("weight")]
    others = [(name, p) for name, p in model.named_parameters() if not name.endswith("weight")]
    groups = [{"params": weights, "weight_decay": 0.2}, {"params": others, "lr": 1e-4, "weight_decay": 0.0}]
    reference = Reference(model, masks, MaskedAdamW, {})
    twins = [
        group | {"params": [reference.model.get_parameter(name) for name, _ in group["params"]]} for group in groups
    ]
    mine = MaskedAdamW(groups, masks, lr=1e-2)
    reference.optimizer = torch.optim.AdamW(twins, lr=1e-2)
    schedules = [torch.optim.lr_scheduler.StepLR(each, 3, 0.5) for each in (mine, reference.optimizer)]
    for _ in range(10):
        grads = {name: torch.randn_like(p) for name, p in model.named_parameters()}
        for name, p in model.named_parameters():
            p.grad = grads[name]
        mine.step()
        reference.step(grads, None)
        for schedule in schedules:
            schedule.step()
    reference.assert_near(model)


def test_a_real_loss_under_autocast_goes_down() -> None:
    for storage in ("dense", "compact"):
        model, masks = small()
        optimizer = MaskedAdamW(model.parameters(), masks, lr=1e-2, storage=storage)
        scaler = torch.amp.GradScaler("cpu")
        x, y = torch.randn(64, 37), torch.randn(64, 11)
        losses = []
        for _ in range(40):
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                loss = (model(x) - y).float().square().mean()
            scaler.scale(loss).backward()
            mask_gradients_(model.parameters(), masks)
            scaler.unscale_(optimizer)
            clip_grad_norm_(model.parameters(), masks, 1.0)
            scaler.step(optimizer)
            scaler.update()
            losses.append(loss.item())
            assert_held(model, masks)
        assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("pattern", [NM(2, 4), Block(4, 4), Unstructured()], ids=str)
def test_a_converted_layer_trains_its_values(pattern: Pattern) -> None:
    w = torch.where(keep_mask(pattern, 24, 32), torch.randn(24, 32), 0.0)
    layer = linear_of(matrix_of(w, pattern), torch.randn(24), trainable=True)
    dense = nn.Linear(32, 24)
    with torch.no_grad():
        dense.weight.copy_(w)
        dense.bias.copy_(layer.bias)
    mine = MaskedAdamW(layer.named_parameters(), lr=1e-2)
    reference = Reference(
        dense, Masks.from_tensors({"weight": w != 0}), MaskedAdamW, {"lr": 1e-2, "weight_decay": 0.01}
    )
    for _ in range(10):
        x = torch.randn(16, 32)
        for model in (layer, dense):
            model.zero_grad()
            model(x).square().mean().backward()
        mine.step()
        reference.step({name: p.grad for name, p in dense.named_parameters()}, None)
        with torch.no_grad():
            for p, q in zip(dense.parameters(), reference.model.parameters(), strict=True):
                p.copy_(q)
    torch.testing.assert_close(layer.matrix().to_dense(), dense.weight.detach(), rtol=1e-4, atol=1e-5)


def test_odd_gradients_and_weights_are_taken() -> None:
    weight = nn.Parameter(torch.randn(16, 24).t())  # not contiguous
    kept = torch.rand(24, 16) > 0.5
    start = weight.detach().clone()
    optimizer = MaskedSGD([("w", weight)], Masks.from_tensors({"w": kept}), lr=1.0)
    weight.grad = torch.full((), 0.25).expand(24, 16)
    optimizer.step()
    assert torch.equal(weight.detach(), torch.where(kept, start - 0.25, 0.0))
    double = nn.Parameter(torch.randn(5, dtype=torch.float64))
    before = double.detach().clone()
    optimizer = MaskedSGD([double], lr=0.5)
    double.grad = torch.ones_like(double)
    optimizer.step()
    assert torch.equal(double.detach(), before - 0.5), "float64 stays float64"


def test_a_found_inf_skips_the_step_and_does_not_count_it() -> None:
    model, masks = small()
    optimizer = MaskedAdamW(model.named_parameters(), masks)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    scaler.scale(torch.ones(()))
    before = [p.detach().clone() for p in model.parameters()]
    for p in model.parameters():
        p.grad = torch.full_like(p, torch.inf)
    scaler.step(optimizer)
    scaler.update()
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert scaler.get_scale() == 2.0
    assert not optimizer.state


@pytest.mark.parametrize("storage", ["dense", "compact"])
@pytest.mark.parametrize(
    ("kind", "torchs", "options"),
    [
        (MaskedAdamW, torch.optim.AdamW, {"lr": 1e-2}),
        (MaskedSGD, torch.optim.SGD, {"lr": 1e-2, "momentum": 0.9}),
    ],
    ids=["adamw", "momentum"],
)
def test_parameters_whose_strides_are_their_own_are_updated_as_torch_would(
    kind: type, torchs: type, options: dict[str, Any], storage: str
) -> None:
    def made() -> list[nn.Parameter]:
        torch.manual_seed(3)
        filters = torch.randn(8, 8, 3, 3).to(memory_format=torch.channels_last)
        return [nn.Parameter(filters), nn.Parameter(torch.randn(10, 12).t())]

    ours, theirs = made(), made()
    optimizer, plain = kind(ours, {}, storage=storage, **options), torchs(theirs, **options)
    for step in range(4):
        for mine, yours in zip(ours, theirs, strict=True):
            mine.grad = torch.randn_like(mine)
            yours.grad = mine.grad.clone()
        optimizer.step()
        plain.step()
        if step == 1:
            optimizer.load_state_dict(plain.state_dict())
        for mine, yours in zip(ours, theirs, strict=True):
            assert mine.stride() == yours.stride()
            torch.testing.assert_close(mine, yours)


@pytest.mark.parametrize("storage", ["dense", "compact"])
def test_a_mask_that_comes_later_is_held_from_the_next_step_on(storage: str) -> None:
    model = nn.Sequential(nn.Linear(12, 8), nn.Linear(8, 4))
    model[0].weight.data.mul_(torch.rand(8, 12) < 0.5)
    masks = Masks.from_zeros(model)
    optimizer = MaskedAdamW(model.named_parameters(), masks, storage=storage, lr=1e-2)
    name, weight = "1.weight", model[1].weight
    assert name not in masks
    keep = torch.rand(weight.shape) < 0.5
    for late in (False, False, True, True):
        if late:
            masks[name] = Mask.from_dense(keep)
        for p in model.parameters():
            p.grad = torch.randn_like(p)
        before = weight.detach().clone()
        optimizer.step()
        assert bool((weight[keep] != before[keep]).all())
        assert bool((weight[~keep] == 0).all()) == late
