"""Regrow: RigL and SET against slow loops, exact densities, zero weight and state of what grows, reloads, refusals."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from ajour import train
from ajour.terms.errors import PatternError
from ajour.terms.pattern import NM, Block, Pattern, Unstructured
from ajour.train.regrow import drop_and_grow
from pruned import bits

STORAGES = ("dense", "compact")


def slow_move(size: list[float], growth: list[float], live: list[bool], fraction: float) -> list[bool]:
    """RigL's two ArgTopK with Python's own sort; among equals the first counts as larger."""
    kept = [i for i, alive in enumerate(live) if alive]
    moved = math.floor(fraction * len(kept))
    stay = set(sorted(kept, key=lambda i: (-size[i], i))[: len(kept) - moved])
    free = [i for i in range(len(live)) if i not in stay]
    grown = set(sorted(free, key=lambda i: (-growth[i], i))[:moved])
    return [i in stay or i in grown for i in range(len(live))]


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.booleans()), max_size=40), st.floats(0, 1))
def test_drop_and_grow_equals_two_sorts(units: list[tuple[int, int, bool]], fraction: float) -> None:
    size, growth, live = ([unit[i] for unit in units] for i in range(3))
    tensors = (torch.tensor(size).float(), torch.tensor(growth).float(), torch.tensor(live, dtype=torch.bool))
    moved = drop_and_grow(*tensors, fraction)
    assert moved.tolist() == slow_move(size, growth, live, fraction)
    assert int(moved.sum()) == sum(live)


def parts(storage: str, pattern: Pattern = Unstructured(), density: float = 0.3, **options: Any) -> tuple[Any, ...]:  # noqa: B008
    """A small model, masks on its two wide layers, an optimizer and a schedule."""
    model = nn.Sequential(nn.Linear(24, 32), nn.Tanh(), nn.Linear(32, 16), nn.Tanh(), nn.Linear(16, 4))
    masks = train.Masks.from_pattern(model, pattern, density, layers=["0", "2"]).apply_(model)
    optimizer = train.MaskedAdamW(model.named_parameters(), masks, lr=1e-2, weight_decay=0.1, storage=storage)
    options = {"until": 100, "every": 4, "fraction": 0.4} | options
    return model, masks, optimizer, train.Regrow(optimizer, pattern=pattern, **options)


def backward(model: nn.Module, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    model.zero_grad()
    model(torch.randn(16, 24, generator=generator)).square().sum().backward()


def run(parts: tuple[Any, ...], steps: range, seen: Callable[[int, Any], None] = lambda step, change: None) -> None:
    model, _, optimizer, regrow = parts
    for step in steps:
        backward(model, step)
        change = regrow.step()
        if change is None:
            optimizer.step()
        seen(step, change)


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("method", ["rigl", "set"])
def test_density_of_each_layer_stays_and_zeros_are_exact_after_every_step(storage: str, method: str) -> None:
    made = parts(storage, method=method)
    model, masks, _, _ = made
    counts = {name: mask.kept for name, mask in masks.items()}
    first = dict(masks)
    changes = []

    def check(step: int, change: train.MaskChange | None) -> None:
        changes.append(change)
        for name, mask in masks.items():
            assert mask.kept == counts[name]
            assert not bits(model.get_parameter(name).detach())[~mask.dense()].any()

    run(made, range(30), check)
    assert [step + 1 for step, change in enumerate(changes) if change is not None] == [4, 8, 12, 16, 20, 24, 28]
    for change in filter(None, changes):
        assert change.density == {name: counts[name] / masks[name].numel for name in masks}
        assert change.removed == change.added
        assert sum(change.removed.values()) > 0
    assert all(masks[name] != first[name] for name in masks)


@pytest.mark.parametrize("storage", STORAGES)
def test_a_rigl_step_moves_exactly_what_the_slow_loop_moves(storage: str) -> None:
    made = parts(storage, every=3)
    model, masks, _, regrow = made
    run(made, range(2))
    backward(model, 2)
    fraction = 0.4 / 2 * (1 + math.cos(math.pi * 3 / 100))
    expected, weights = {}, {}
    for name, mask in masks.items():
        p = model.get_parameter(name)
        kept = slow_move(p.detach().abs().flatten().tolist(), p.grad.abs().flatten().tolist(),
                         mask.dense().flatten().tolist(), fraction)  # fmt: skip
        expected[name] = torch.tensor(kept).view(p.shape)
        weights[name] = torch.where(expected[name] & mask.dense(), p.detach(), 0.0)
    change = regrow.step()
    assert change is not None
    for name in masks:
        assert torch.equal(masks[name].dense(), expected[name])
        assert torch.equal(bits(model.get_parameter(name).detach()), bits(weights[name])), "grown weights start at +0.0"


@pytest.mark.parametrize("storage", STORAGES)
def test_what_grows_starts_with_the_state_of_a_fresh_entry(storage: str) -> None:
    """After a change, training goes on as torch's AdamW would whose moments are zero in all that joined."""
    made = parts(storage, every=3)
    model, masks, optimizer, regrow = made
    plain = copy.deepcopy(model)
    reference = torch.optim.AdamW(plain.parameters(), lr=1e-2, weight_decay=0.1)
    for step in range(12):
        backward(model, step)
        backward(plain, step)
        before = {name: mask.dense() for name, mask in masks.items()}
        if regrow.step() is None:
            optimizer.step()
            for name, mask in masks.items():
                plain.get_parameter(name).grad *= mask.dense()
            reference.step()
        else:
            for name, mask in masks.items():
                p = plain.get_parameter(name)
                stays = before[name] & mask.dense()
                for tensor in (p.data, reference.state[p]["exp_avg"], reference.state[p]["exp_avg_sq"]):
                    tensor *= stays
        for name, p in model.named_parameters():
            assert torch.allclose(p, plain.get_parameter(name), rtol=1e-4, atol=1e-6), (step, name)


@pytest.mark.parametrize("storage", STORAGES)
def test_masters_and_moments_of_what_grows_are_zero_and_others_stay(storage: str) -> None:
    model = nn.Sequential(nn.Linear(24, 32), nn.Tanh(), nn.Linear(32, 4)).to(torch.bfloat16)
    masks = train.Masks.from_pattern(model, Unstructured(), 0.3)
    optimizer = train.MaskedAdamW(model.parameters(), masks, lr=1e-2, storage=storage, master=True)
    regrow = train.Regrow(optimizer, until=100, every=3, fraction=0.5)

    def states(name: str) -> dict[str, Tensor]:
        kept, state = masks[name].dense(), optimizer.state[model.get_parameter(name)]
        found = {}
        for key in ("exp_avg", "exp_avg_sq", "master"):
            found[key] = torch.zeros(kept.shape)
            found[key][kept] = state[key] if storage == "compact" else state[key][kept]
        return found

    for step in range(3):
        model.zero_grad()
        x = torch.randn(16, 24, generator=torch.Generator().manual_seed(step)).to(torch.bfloat16)
        model(x).square().sum().backward()
        if step < 2:
            assert regrow.step() is None
            optimizer.step()
    before = {name: (masks[name].dense(), states(name)) for name in masks}
    assert regrow.step() is not None
    for name, (old, had) in before.items():
        grown, stays = masks[name].dense() & ~old, masks[name].dense() & old
        assert grown.any()
        for key, now in states(name).items():
            assert not bits(now)[grown].any(), key
            assert torch.equal(now[stays], had[key][stays]), key
            assert now[stays].any(), key


def test_set_is_reproducible_by_its_seed() -> None:
    grown = []
    for seed in (1, 1, 2):
        torch.manual_seed(0)
        made = parts("dense", method="set", seed=seed)
        run(made, range(9))
        grown.append({name: mask.dense() for name, mask in made[1].items()})
    assert all(torch.equal(grown[0][name], grown[1][name]) for name in grown[0])
    assert not all(torch.equal(grown[0][name], grown[2][name]) for name in grown[0])


def test_set_grows_every_free_entry_with_the_same_chance() -> None:
    model = nn.Sequential(nn.Linear(8, 4))
    counts = torch.zeros(4, 8)
    keep = torch.zeros(4, 8, dtype=torch.bool)
    keep[0] = True
    model[0].weight.data = torch.arange(1.0, 33.0).view(4, 8)  # the first four of the first row are dropped
    start = copy.deepcopy(model.state_dict())
    for seed in range(700):
        model.load_state_dict(start)
        masks = train.Masks.from_tensors({"0.weight": keep}, model).apply_(model)
        optimizer = train.MaskedSGD(model.parameters(), masks, lr=0.1)
        train.Regrow(optimizer, method="set", fraction=0.55, every=1, until=10**6, seed=seed).step()
        counts += masks["0.weight"].dense()
    assert (counts[0, 4:] == 700).all()
    free = torch.cat([counts[0, :4], counts[1:].flatten()])  # 28 places for four: each 100 times, spread 9.3
    assert free.sum() == 2800
    assert ((free - 100).abs() < 50).all()


@pytest.mark.parametrize("method", ["rigl", "set"])
def test_blocks_move_whole(method: str) -> None:
    made = parts("dense", Block(4, 8), 0.5, method=method)
    run(made, range(20))
    for mask in made[1].values():
        blocks = mask.dense().view(mask.shape[0] // 4, 4, mask.shape[1] // 8, 8)
        assert (blocks.any(3).any(1) == blocks.all(3).all(1)).all()
        assert blocks.all(3).all(1).double().mean() == 0.5


def test_a_reload_in_the_middle_changes_nothing(tmp_path: Path) -> None:
    whole = parts("compact", method="set")
    torch.manual_seed(0)
    half = parts("compact", method="set")
    half[0].load_state_dict(whole[0].state_dict())
    for name in half[1]:
        assert half[1][name] == whole[1][name]
    run(whole, range(20))
    run(half, range(10))
    torch.save({"model": half[0].state_dict(), "optimizer": half[2].state_dict(), "regrow": half[3].state_dict(),
                "masks": half[1].state_dict()}, tmp_path / "state")  # fmt: skip
    state = torch.load(tmp_path / "state", weights_only=True)

    torch.manual_seed(9)
    model = parts("compact")[0]
    model.load_state_dict(state["model"])
    masks = train.Masks.from_state_dict(state["masks"], model)
    optimizer = train.MaskedAdamW(model.named_parameters(), masks, lr=1e-2, weight_decay=0.1, storage="compact")
    optimizer.load_state_dict(state["optimizer"])
    regrow = train.Regrow(optimizer, method="set", until=100, every=4, fraction=0.4)
    regrow.load_state_dict(state["regrow"])
    run((model, masks, optimizer, regrow), range(10, 20))
    assert masks == whole[1]
    for name, p in model.named_parameters():
        assert torch.equal(bits(p.detach()), bits(whole[0].get_parameter(name).detach()))


def test_a_change_waits_for_finite_gradients() -> None:
    made = parts("dense", every=2)
    model, masks, _, regrow = made
    first = dict(masks)
    run(made, range(1))
    backward(model, 1)
    model[2].weight.grad[0, 0] = torch.inf
    assert regrow.step() is None
    assert dict(masks) == first
    backward(model, 2)
    change = regrow.step()
    assert change is not None
    assert change.step == 3


def test_the_fraction_decays_with_a_cosine_and_changes_end() -> None:
    made = parts("dense", every=1, until=10)
    regrow = made[3]
    assert regrow.fraction_at(0) == 0.4
    assert regrow.fraction_at(5) == pytest.approx(0.2)
    assert regrow.fraction_at(10) == regrow.fraction_at(99) == 0
    steps = []
    run(made, range(14), lambda step, change: steps.append(change is not None))
    assert steps == [True] * 9 + [False] * 5


def test_settings_and_masks_that_don_t_fit_are_refused() -> None:
    _, _, optimizer, _ = parts("dense")
    with pytest.raises(PatternError, match="method is 'rigl' or 'set'; found 'random'"):
        train.Regrow(optimizer, until=10, method="random")  # type: ignore[arg-type]
    with pytest.raises(PatternError, match=r"expected 0 <= fraction <= 1, .* found 1.5, 100, 10"):
        train.Regrow(optimizer, until=10, fraction=1.5)
    with pytest.raises(PatternError, match=r"'0.weight': its mask cuts through blocks, so it isn't one of block 8x8"):
        train.Regrow(optimizer, until=10, pattern=Block(8, 8))
    with pytest.raises(PatternError, match=r"'0.weight': a mask is held in units of blocks or entries, found 2:4"):
        train.Regrow(optimizer, until=10, pattern=NM(2, 4))
    regrow = train.Regrow(optimizer, until=10, every=1)
    with pytest.raises(PatternError, match=r"'0.weight' has no gradient to grow by"):
        regrow.step()


def test_a_change_prints_step_and_densities() -> None:
    made = parts("dense", every=1)
    backward(made[0], 0)
    change = made[3].step()
    moved = math.floor(0.4 / 2 * (1 + math.cos(math.pi / 100)) * 230) + math.floor(
        0.4 / 2 * (1 + math.cos(math.pi / 100)) * 154
    )
    grown = sum(change.added.values())
    assert str(change) == (
        f"step 1: density {384 / 1280:.4f}, {grown} removed, {grown} added "
        f"(0.weight {230 / 768:.4f}, 2.weight {154 / 512:.4f})"
    )
    assert 0 < grown <= moved
