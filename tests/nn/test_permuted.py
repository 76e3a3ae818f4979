"""Permuted: what it computes, shows and holds, whatever layer is inside."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import ajour
from ajour.layers import is_conv1d
from ajour.nn import Permuted, linear_of
from ajour.terms.pattern import NM
from factories import conv1d
from pruned import keep_mask, matrix_of


def sparse() -> nn.Module:
    w = torch.where(keep_mask(NM(2, 4), 24, 32), torch.randn(24, 32), 0.0)
    return linear_of(matrix_of(w, NM(2, 4)), torch.randn(24))


@pytest.mark.parametrize(
    "make", [lambda: nn.Linear(32, 24), lambda: conv1d(24, 32), sparse], ids=["dense", "conv1d", "2:4"]
)
def test_it_is_the_layer_on_features_in_order_and_shows_its_weight_in_theirs(make) -> None:  # type: ignore[no-untyped-def]
    layer, order, x = make(), torch.randperm(32), torch.randn(2, 5, 32)
    permuted = Permuted(layer, order)
    with torch.no_grad():
        assert torch.equal(permuted(x), layer(x[..., order]))
        w = permuted.weight.t() if is_conv1d(layer) else permuted.weight
        torch.testing.assert_close(permuted(x), nn.functional.linear(x, w, permuted.bias))
    assert (permuted.in_features, permuted.out_features) == (32, 24)
    assert "32 in features in another order" in repr(permuted)


def test_it_keeps_its_order_through_a_state_dict_a_copy_and_a_change_of_dtype() -> None:
    permuted, x = Permuted(nn.Linear(32, 24), torch.randperm(32)), torch.randn(3, 32)
    other = Permuted(nn.Linear(32, 24), torch.arange(32))
    other.load_state_dict(permuted.state_dict())
    assert torch.equal(other(x), permuted(x))
    assert torch.equal(copy.deepcopy(permuted).half().ajour_order, permuted.ajour_order)


def test_gradients_reach_x_and_the_layer() -> None:
    permuted, x = Permuted(nn.Linear(6, 4), torch.randperm(6)), torch.randn(3, 6, requires_grad=True)
    permuted(x).sum().backward()
    torch.testing.assert_close(x.grad, permuted.weight.detach().sum(0).expand(3, 6))
    assert permuted.layer.weight.grad is not None


@pytest.mark.parametrize("make", [lambda: nn.Linear(24, 24), lambda: conv1d(24, 24)], ids=["linear", "conv1d"])
def test_a_square_weight_is_read_back_in_the_features_own_order(make: Callable[[], nn.Module], tmp_path: Path) -> None:
    layer = make()
    order = torch.randperm(24)
    inner = copy.deepcopy(layer)
    side = 0 if is_conv1d(layer) else 1
    with torch.no_grad():
        inner.weight.copy_(layer.weight.index_select(side, order))
    permuted = Permuted(inner, order)
    x = torch.randn(3, 24)
    torch.testing.assert_close(permuted(x), layer(x))
    ajour.save(nn.Sequential(permuted), tmp_path / "m.safetensors")
    read = ajour.read(tmp_path / "m.safetensors")
    assert set(read) == {"0.weight", "0.bias"}
    assert torch.equal(read["0.weight"], layer.weight)
    loaded = ajour.load(tmp_path / "m.safetensors", nn.Sequential(make()))
    torch.testing.assert_close(loaded(x), layer(x))


@pytest.mark.parametrize("weight", [torch.zeros(24), torch.tensor(1.0), torch.zeros(24, 23), torch.zeros(2, 24, 24)])
def test_a_weight_that_an_order_does_not_fit_is_refused(weight: Tensor, tmp_path: Path) -> None:
    permuted = Permuted(nn.Linear(24, 24), torch.randperm(24))
    permuted.layer.weight = nn.Parameter(weight)
    ajour.save(nn.Sequential(permuted), tmp_path / "m.safetensors")
    with pytest.raises(ajour.AjourError, match="ajour_order is no order of in features"):
        ajour.read(tmp_path / "m.safetensors")


@pytest.mark.parametrize("make", [lambda: nn.Linear(32, 24), lambda: trainable()], ids=["dense", "2:4 trainable"])
def test_its_weight_takes_gradients_and_refuses_writes(make: Callable[[], nn.Module]) -> None:
    layer, order = make(), torch.randperm(32)
    permuted, first = Permuted(layer, order), next(layer.parameters())
    (expected,) = torch.autograd.grad((layer.weight.square() * torch.arange(32)[order.argsort()]).sum(), first)
    (found,) = torch.autograd.grad(
        (permuted.weight[:, order].square() * torch.arange(32)[order.argsort()]).sum(), first
    )
    torch.testing.assert_close(found, expected)
    with torch.no_grad(), pytest.raises(ajour.AjourError, match="would change only a copy"):
        permuted.weight.mul_(2)


def trainable() -> nn.Module:
    w = torch.where(keep_mask(NM(2, 4), 24, 32), torch.randn(24, 32), 0.0)
    return linear_of(matrix_of(w, NM(2, 4)), torch.randn(24), trainable=True)
