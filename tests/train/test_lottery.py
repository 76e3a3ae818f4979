"""Sparse fine-tuning: exactly k entries, ties resolved, a rewind bit for bit, and a run against a slow loop."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from ajour import train
from ajour.terms.errors import ConversionError, PatternError
from pruned import bits


def model() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


def slow_masks(before: dict[str, Tensor], after: dict[str, Tensor], count: int) -> dict[str, Tensor]:
    """One Python list over all parameters; among equals the first."""
    moved = [(-abs(float(a) - float(b)), name, i)
             for name in before
             for i, (a, b) in enumerate(zip(after[name].flatten(), before[name].flatten(), strict=True))]  # fmt: skip
    order = sorted(range(len(moved)), key=lambda i: (moved[i][0], i))[:count]
    masks = {name: torch.zeros(t.shape, dtype=torch.bool) for name, t in before.items()}
    for place in order:
        _, name, i = moved[place]
        masks[name].view(-1)[i] = True
    return masks


@given(st.data(), st.integers(0, 83))
def test_exactly_so_many_entries_whatever_the_ties(data: st.DataObject, count: int) -> None:
    net = model()
    before = train.snapshot(net)
    assert sum(t.numel() for t in before.values()) == 83
    with torch.no_grad():
        for p in net.parameters():
            steps = data.draw(st.lists(st.integers(-2, 2), min_size=p.numel(), max_size=p.numel()))
            p.copy_(torch.tensor(steps).view_as(p))
    zero = {name: torch.zeros_like(t) for name, t in before.items()}
    masks = train.most_changed(net, zero, count)
    expected = slow_masks(zero, {name: p.detach() for name, p in net.named_parameters()}, count)
    assert sum(mask.kept for mask in masks.values()) == count
    assert all(torch.equal(masks[name].dense(), expected[name]) for name in expected)


def test_bfloat16_differences_are_taken_in_float32() -> None:
    net = nn.Sequential(nn.Linear(2, 1, bias=False)).to(torch.bfloat16)
    before = {"0.weight": torch.tensor([[-1.0, 300.0]], dtype=torch.bfloat16)}
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[258.0, 40.0]]))  # moved by 259 and 260, both 260 in bfloat16
    assert train.most_changed(net, before, 1)["0.weight"].dense().tolist() == [[False, True]]


@pytest.mark.parametrize("storage", ["dense", "compact"])
def test_a_run_equals_the_slow_loop_and_the_rest_stays_bit_for_bit(storage: str) -> None:
    x, y = torch.randn(32, 6), torch.randn(32, 3)
    net = model()
    with torch.no_grad():
        net[0].weight[0, 0] = -0.0
    before = train.snapshot(net)
    slow = copy.deepcopy(net)

    full = torch.optim.AdamW(net.parameters(), lr=1e-2, weight_decay=0.0)
    for _ in range(20):
        full.zero_grad()
        (net(x) - y).square().mean().backward()
        full.step()
    after = {name: p.detach().clone() for name, p in net.named_parameters()}
    masks = train.most_changed(net, before, 20)
    expected = slow_masks(before, after, 20)

    changes = train.rewind(net, before)
    assert all(torch.equal(bits(getattr(net[int(n[0])], n[2:]).detach()), bits(t)) for n, t in before.items())
    optimizer = train.MaskedAdamW(list(changes.items()), masks, lr=1e-2, weight_decay=0.0, storage=storage)
    plain = torch.optim.AdamW(slow.parameters(), lr=1e-2, weight_decay=0.0)
    for _ in range(50):
        optimizer.zero_grad()
        (net(x) - y).square().mean().backward()
        optimizer.step()
        plain.zero_grad()
        (slow(x) - y).square().mean().backward()
        for name, p in slow.named_parameters():
            p.grad *= expected[name]
        plain.step()
    train.finish(net)
    moved = 0
    for name, p in net.named_parameters():
        kept = expected[name]
        assert torch.equal(bits(p.detach())[~kept], bits(before[name])[~kept]), name
        assert torch.allclose(p[kept], slow.get_parameter(name)[kept], rtol=1e-4, atol=1e-6)
        moved += int((p != before[name]).sum())
    assert moved == 20


def test_rounds_equal_the_slow_iterations_and_choose_further_entries_each() -> None:
    x, y = torch.randn(32, 6), torch.randn(32, 3)
    net = model()
    slow = copy.deepcopy(net)
    start = train.snapshot(net)
    masks = None
    for count in (12, 9):
        before = train.snapshot(net)
        _descend(net, x, y, torch.optim.SGD(net.parameters(), lr=0.1))
        masks = train.most_changed(net, before, count, masks)
        changes = train.rewind(net, before)
        _descend(net, x, y, train.MaskedSGD(list(changes.items()), masks, lr=0.1))
        train.finish(net)

    chosen = {name: torch.zeros_like(p, dtype=torch.bool) for name, p in slow.named_parameters()}
    for count in (12, 9):
        before = {name: p.detach().clone() for name, p in slow.named_parameters()}
        _descend(slow, x, y, torch.optim.SGD(slow.parameters(), lr=0.1))
        after = {name: torch.where(chosen[name], before[name], p.detach()) for name, p in slow.named_parameters()}
        further = slow_masks(before, after, count)
        chosen = {name: chosen[name] | further[name] for name in chosen}
        with torch.no_grad():
            for name, p in slow.named_parameters():
                p.copy_(before[name])
        _descend(slow, x, y, torch.optim.SGD(slow.parameters(), lr=0.1), chosen)

    assert sum(mask.kept for mask in masks.values()) == 21
    for name, p in net.named_parameters():
        assert torch.equal(masks[name].dense(), chosen[name]), name
        assert torch.equal(bits(p.detach())[~chosen[name]], bits(start[name])[~chosen[name]]), name
        assert torch.allclose(p, slow.get_parameter(name), rtol=1e-4, atol=1e-6)
    with pytest.raises(PatternError, match="count=63 is not within the 62 entries of 4 parameters that are left"):
        train.most_changed(net, start, 63, masks)
    with pytest.raises(PatternError, match=r"'0.weight': its mask is \(2,\), the parameter \(8, 6\)"):
        train.most_changed(net, start, 1, {"0.weight": train.Mask.from_dense(torch.ones(2))})


def _descend(
    net: nn.Module, x: Tensor, y: Tensor, optimizer: torch.optim.Optimizer, kept: dict[str, Tensor] | None = None
) -> None:
    for _ in range(15):
        optimizer.zero_grad()
        (net(x) - y).square().mean().backward()
        for name, p in net.named_parameters() if kept else ():
            p.grad *= kept[name]
        optimizer.step()


def test_finish_leaves_plain_parameters() -> None:
    net = model()
    train.rewind(net, train.snapshot(net))
    assert train.finish(net) is net
    assert [type(module) for module in net] == [nn.Linear, nn.Tanh, nn.Linear]
    assert list(dict(net.named_parameters())) == ["0.weight", "0.bias", "2.weight", "2.bias"]


def test_counts_and_names_that_don_t_fit_are_refused() -> None:
    net = model()
    before = train.snapshot(net)
    with pytest.raises(PatternError, match="count=84 is not within the 83 entries of 4 parameters that are left"):
        train.most_changed(net, before, 84)
    with pytest.raises(ConversionError, match=r"'1.weight' is no parameter"):
        train.rewind(net, {"1.weight": torch.zeros(2)})
    with pytest.raises(ConversionError, match=r"'0.weight': \(2,\) in the snapshot, \(8, 6\) in the model"):
        train.rewind(net, before | {"0.weight": torch.zeros(2)})
    assert not hasattr(net[2], "parametrizations")
