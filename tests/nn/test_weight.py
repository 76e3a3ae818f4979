"""`.weight` of a sparse layer: cheap to ask about, exact to compute with, impossible to change."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from ajour.nn import SparseLinear, linear_of
from ajour.terms.errors import KernelError
from ajour.terms.pattern import NM
from pruned import keep_mask, matrix_of


@pytest.fixture
def w() -> torch.Tensor:
    return torch.where(keep_mask(NM(2, 4), 8, 12), torch.randn(8, 12), 0.0)


@pytest.fixture
def module(w: torch.Tensor) -> SparseLinear:
    return linear_of(matrix_of(w, NM(2, 4)))


def test_asking_for_its_looks_rebuilds_nothing(module: SparseLinear, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SparseLinear, "matrix", lambda self: pytest.fail("it was rebuilt"))
    weight = module.weight
    assert (weight.dtype, weight.shape, weight.device.type) == (torch.float32, (8, 12), "cpu")
    assert isinstance(weight, torch.Tensor)
    assert not weight.requires_grad
    assert weight.detach().data.shape == (8, 12)


def test_computing_with_it_gives_the_weight(module: SparseLinear, w: torch.Tensor) -> None:
    x = torch.randn(3, 12)
    assert torch.equal(module.weight, w)
    assert torch.equal(nn.functional.linear(x, module.weight), nn.functional.linear(x, w))
    assert type(module.weight + 0) is torch.Tensor
    assert torch.equal(module.weight.data.t()[3], w[:, 3])
    assert module.weight.tolist() == w.tolist()
    assert (module.weight.numpy() == w.numpy()).all()
    for twin in (copy.deepcopy(module.weight), pickle.loads(pickle.dumps(module.weight)), module.weight.clone()):
        assert torch.equal(twin, w)
    assert repr(module.weight) == repr(w)


def test_it_can_not_be_changed(module: SparseLinear, w: torch.Tensor) -> None:
    with pytest.raises(KernelError, match="would change only a copy; revert the model first"):
        module.weight.mul_(2)
    with pytest.raises(KernelError, match="would change only a copy"):
        module.weight.data.zero_()
    with pytest.raises(KernelError, match="would change only a copy"):
        nn.init.normal_(module.weight)
    with pytest.raises(KernelError, match="would change only a copy"):
        torch.add(w, w, out=module.weight)
    assert torch.equal(w.clone().copy_(module.weight), w)
    with pytest.raises(KernelError, match="no memory of its own"):
        module.weight.data_ptr()
    with pytest.raises((KeyError, AttributeError)):
        module.weight = nn.Parameter(w)  # type: ignore[misc]
    assert torch.equal(module.weight, w)


def test_of_a_trainable_layer_it_is_differentiable(w: torch.Tensor) -> None:
    module = linear_of(matrix_of(w, NM(2, 4)), trainable=True)
    module.weight.square().sum().backward()
    values = module.get_parameter("values")
    assert torch.equal(values.grad, 2 * values)  # type: ignore[arg-type]
