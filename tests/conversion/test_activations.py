"""Folded: the model computes what it says, whatever is put in the place of a layer or of its activation."""

from __future__ import annotations

import copy
import gc
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from ajour.conversion import convert, revert
from ajour.conversion.activations import Folded
from ajour.nn import SparseLinear, linear_of
from ajour.terms.pattern import NM
from forced import plan_for, pruned
from pruned import keep_mask, matrix_of


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(32, 24), nn.GELU(), nn.Linear(24, 16)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc2(self.act(self.fc1(x)))
        return y


def sequential() -> nn.Sequential:
    return nn.Sequential(nn.Linear(32, 24), nn.GELU(), nn.Linear(24, 16))


MODELS = pytest.mark.parametrize(("make", "layer", "place"), [(sequential, "0", "1"), (Mlp, "fc1", "act")])
X = torch.randn(5, 32)


def folded(make: Callable[[], nn.Module], layer: str) -> tuple[nn.Module, nn.Module]:
    """A model and what it was before its layers were converted."""
    model = pruned(make(), NM(2, 4))
    dense = copy.deepcopy(model)
    convert(model, plan_for(model, NM(2, 4)))
    assert model.get_submodule(layer).activation == "gelu"
    return model, dense


def assert_same(model: nn.Module, dense: nn.Module) -> None:
    for twin in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        gc.collect()
        torch.testing.assert_close(twin(X), dense(X))


@MODELS
def test_a_layer_that_is_put_back_alone_keeps_its_activation(make, layer: str, place: str) -> None:  # type: ignore[no-untyped-def]
    model, dense = folded(make, layer)
    assert_same(model, dense)
    held = model.get_submodule(layer)
    setattr(model, layer, revert(held))
    assert type(model.get_submodule(layer)) is nn.Linear
    assert "applied here again" in repr(model)
    assert_same(model, dense)
    revert(model)
    assert type(model.get_submodule(place)) is nn.GELU
    assert_same(model, dense)


@MODELS
def test_so_does_a_dense_layer_put_there_by_hand(make, layer: str, place: str) -> None:  # type: ignore[no-untyped-def]
    model, dense = folded(make, layer)
    setattr(model, layer, copy.deepcopy(dense.get_submodule(layer)))
    assert_same(model, dense)
    convert(model, plan_for(model, NM(2, 4)))
    assert isinstance(model.get_submodule(layer), SparseLinear)
    assert_same(model, dense)


@MODELS
def test_an_activation_that_is_replaced_is_applied_no_more(make, layer: str, place: str) -> None:  # type: ignore[no-untyped-def]
    model, dense = folded(make, layer)
    setattr(model, place, nn.Tanh())
    setattr(dense, place, nn.Tanh())
    assert_same(model, dense)


@MODELS
def test_copies_of_either_part_change_nothing(make, layer: str, place: str) -> None:  # type: ignore[no-untyped-def]
    model, dense = folded(make, layer)
    for part in (layer, place):
        setattr(model, part, copy.deepcopy(model.get_submodule(part)))
        assert_same(model, dense)
        setattr(model, part, pickle.loads(pickle.dumps(model.get_submodule(part))))
        assert_same(model, dense)


def test_parts_in_another_container_compute_the_same() -> None:
    model, dense = folded(sequential, "0")
    assert isinstance(model, nn.Sequential)
    moved = nn.Sequential(*model)
    copied = nn.Sequential(*[copy.deepcopy(part) for part in model])
    assert_same(moved, dense)
    model.insert(0, nn.Identity())
    assert_same(model, dense)
    model[1] = revert(model[1])
    assert_same(model, dense)
    del model
    assert_same(copied, dense)
    assert isinstance(copied[1], Folded)


def test_a_folded_activation_is_traced() -> None:
    model, dense = folded(sequential, "0")
    assert isinstance(model, nn.Sequential)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(X), dense(X))
    model[0] = revert(model[0])
    torch.testing.assert_close(compiled(X), dense(X))
    torch.testing.assert_close(torch.export.export(model, (X,)).module()(X), dense(X))


def test_an_activation_of_a_layer_s_own_comes_along() -> None:
    w = torch.where(keep_mask(NM(2, 4), 24, 32), torch.randn(24, 32), 0.0)
    for name, module in {"relu": nn.ReLU(), "gelu": nn.GELU(), "gelu_tanh": nn.GELU("tanh"), "silu": nn.SiLU()}.items():
        layer = linear_of(matrix_of(w, NM(2, 4)), activation=name)
        expected = module(X @ w.t())
        torch.testing.assert_close(revert(layer)(X), expected)
        model = nn.Sequential(layer)
        convert(model, plan_for(model, NM(2, 4)))
        torch.testing.assert_close(model(X), expected)
        torch.testing.assert_close(revert(model)(X), expected)
