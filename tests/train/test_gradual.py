"""GradualPruning: the cubic schedule, pruning step by step as a slow loop does it, for entries, blocks and N:M."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ajour import train
from ajour.detect import detect
from ajour.terms.errors import PatternError
from ajour.terms.pattern import NM, Block, Dense, Pattern, Unstructured
from pruned import bits


def parts(pattern: Pattern = Unstructured(), density: float | None = 0.2, **options: Any) -> tuple[Any, ...]:  # noqa: B008
    model = nn.Sequential(nn.Linear(24, 32), nn.Tanh(), nn.Linear(32, 16))
    masks = train.Masks.from_pattern(model, Unstructured(), 1.0)
    optimizer = train.MaskedAdamW(model.parameters(), masks, lr=1e-2, weight_decay=0.1)
    options = {"start": 2, "until": 14, "every": 3} | options
    return model, masks, optimizer, train.GradualPruning(optimizer, density, pattern=pattern, **options)


def train_step(parts: tuple[Any, ...], step: int) -> train.MaskChange | None:
    model, masks, optimizer, schedule = parts
    optimizer.zero_grad()
    model(torch.randn(16, 24, generator=torch.Generator().manual_seed(step))).square().sum().backward()
    optimizer.step()
    change: train.MaskChange | None = schedule.step()
    for name, mask in masks.items():
        assert not bits(model.get_parameter(name).detach())[~mask.dense()].any()
    return change


def test_the_schedule_is_the_paper_s_cubic() -> None:
    schedule = parts()[3]
    for t in range(20):
        n = min(max(t, 2), 14)
        sparsity = 0.8 + (0.0 - 0.8) * (1 - (n - 2) / 12) ** 3  # s_f + (s_i - s_f) (1 - (t - t0) / (n dt))^3
        assert schedule.density_at(t) == pytest.approx(1 - sparsity)
    assert schedule.density_at(14) == schedule.density_at(99) == 0.2


def test_each_change_keeps_the_largest_of_what_was_kept() -> None:
    made = parts()
    model, masks, optimizer, schedule = made
    pruned_at = {}
    for step in range(1, 20):
        before = {name: mask.dense() for name, mask in masks.items()}
        optimizer.zero_grad()
        model(torch.randn(16, 24)).square().sum().backward()
        optimizer.step()
        weights = {name: model.get_parameter(name).detach().clone() for name in masks}
        change = schedule.step()
        if change is None:
            assert all(torch.equal(masks[name].dense(), before[name]) for name in masks)
            continue
        pruned_at[step] = change
        for name, w in weights.items():
            kept = slow_keep(w, before[name], round(schedule.density_at(step) * w.numel()))
            assert torch.equal(masks[name].dense(), kept)
            assert torch.equal(bits(model.get_parameter(name).detach()), bits(torch.where(kept, w, 0.0)))
            assert change.density[name] == int(kept.sum()) / kept.numel()
            assert (change.removed[name], change.added[name]) == (int((before[name] & ~kept).sum()), 0)
    assert list(pruned_at) == [2, 5, 8, 11, 14]
    assert masks.density() == pytest.approx(0.2, abs=1e-3)


def slow_keep(w: Tensor, kept: Tensor, count: int) -> Tensor:
    """Python's own sort over what was kept."""
    sizes, alive = w.abs().flatten().tolist(), kept.flatten().tolist()
    chosen = sorted((i for i in range(w.numel()) if alive[i]), key=lambda i: (-sizes[i], i))[:count]
    out = torch.zeros(w.numel(), dtype=torch.bool)
    out[chosen] = True
    return out.view_as(w)


@pytest.mark.parametrize(("pattern", "density"), [(Unstructured(), 0.5), (Block(8, 8), 0.5), (NM(4, 8), None)], ids=str)
def test_kept_weights_that_are_zero_stay_before_any_that_was_pruned(pattern: Pattern, density: float | None) -> None:
    """All weights are zero, so what was pruned ties with what is kept, and stands before it."""
    model = nn.Sequential(nn.Linear(24, 32))
    column = torch.arange(24).expand(32, 24)
    kept = column % 8 >= 2 if isinstance(pattern, NM) else column >= 8
    with torch.no_grad():
        model[0].weight.zero_()
    masks = train.Masks.from_tensors({"0.weight": kept}, model)
    schedule = train.GradualPruning(train.MaskedSGD(model.parameters(), masks), density, pattern=pattern, until=1)
    change = schedule.step()
    assert change is not None
    assert change.added == {"0.weight": 0}
    assert masks["0.weight"].kept == 384
    assert not (masks["0.weight"].dense() & ~kept).any()


def test_blocks_die_whole() -> None:
    made = parts(Block(8, 8), 0.25)
    densities = [change.total for step in range(16) if (change := train_step(made, step)) is not None]
    assert densities == sorted(densities, reverse=True)
    assert detect(made[0][0].weight.detach()).pattern == Block(8, 8)
    assert [mask.density for mask in made[1].values()] == [0.25, 0.25]


def test_n_m_goes_through_the_patterns_between() -> None:
    made = parts(NM(2, 8), None, start=0, until=30, every=1)
    seen = []
    for step in range(32):
        if train_step(made, step) is not None:
            groups = made[1]["0.weight"].dense().view(32, 3, 8).sum(-1)
            assert groups.min() == groups.max()
            seen.append(int(groups.max()))
    assert seen == sorted(seen, reverse=True)
    assert set(seen) == {7, 6, 5, 4, 3, 2}
    assert seen[-1] == 2
    assert detect(made[0][0].weight.detach()).pattern == NM(2, 8)


def test_a_reload_goes_on_with_the_count() -> None:
    made, other = parts(), parts()
    for step in range(6):
        train_step(made, step)
    other[3].load_state_dict(made[3].state_dict())
    assert [other[3].step() is not None for _ in range(3)] == [False, True, False]


@pytest.mark.parametrize(
    ("pattern", "density", "options", "message"),
    [
        (NM(2, 4), 0.5, {}, "2:4 and density=0.5 don't go together"),
        (Unstructured(), None, {}, "unstructured and density=None don't go together"),
        (Dense(), 0.5, {}, "dense and density=0.5 don't go together"),
        (Unstructured(), 0.5, {"initial": 0.4}, "found 0.5, 0.4, 2, 14, 3"),
        (Unstructured(), 0.5, {"until": 2}, "found 0.5, 1.0, 2, 2, 3"),
    ],
)
def test_settings_that_don_t_go_together_are_refused(
    pattern: Pattern, density: float | None, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(PatternError, match=message):
        parts(pattern, density, **options)
