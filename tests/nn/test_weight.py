"""`.weight` of a sparse layer: cheap to ask about, exact to compute with, impossible to change."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from ajour.nn import SparseLinear, linear_of
from ajour.ops.gradients import EXPAND
from ajour.terms.errors import KernelError
from ajour.terms.pattern import NM, Block, Pattern, Unstructured
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
    with pytest.raises(KernelError, match="no memory of its own"):
        module.weight.t().data_ptr()
    assert torch.equal(module.weight, w)


def _assign_data(weight: torch.Tensor) -> None:
    weight.data = torch.zeros(8, 12)


def _assign_row_of_data(weight: torch.Tensor) -> None:
    weight.data[0] = 0


def _assign_row(weight: torch.Tensor) -> None:
    with torch.no_grad():
        weight[0] = 0


def _in_no_grad(weight: torch.Tensor) -> None:
    with torch.no_grad():
        weight.mul_(0.5)


def _give_gradient(weight: torch.Tensor) -> None:
    weight.grad = torch.ones(8, 12)


WRITES: dict[str, Callable[[torch.Tensor], object]] = {
    "data =": _assign_data,
    "data[0] =": _assign_row_of_data,
    "[0] =": _assign_row,
    "no_grad mul_": _in_no_grad,
    "grad =": _give_gradient,
    "init": nn.init.zeros_,
    "data.mul_": lambda weight: weight.data.mul_(0.5),
    "row of a view": lambda weight: weight.detach().view(-1)[:10].fill_(7.0),
    "transposed": lambda weight: weight.data.t().mul_(2),
    "one of a list of views": lambda weight: weight.data.chunk(2)[1].zero_(),
    "for each": lambda weight: torch._foreach_mul_([torch.ones(2), weight.data], 0.5),
    "out of two": lambda weight: torch.max(torch.ones(8, 12), 1, out=(weight.data[:, 0], torch.ones(8).long())),
}


@pytest.mark.parametrize("trainable", [False, True], ids=["frozen", "trainable"])
@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES.keys())
def test_no_write_to_it_is_lost_without_a_word(
    w: torch.Tensor, trainable: bool, write: Callable[[torch.Tensor], object]
) -> None:
    module = linear_of(matrix_of(w, NM(2, 4)), trainable=trainable)
    with pytest.raises(KernelError, match=r"NMLinear \(12 -> 8 features\) .* a copy; revert the model first, edit"):
        write(module.weight)
    with pytest.raises(ValueError, match="read-only"):
        module.weight.detach().numpy()[:] = 0
    assert torch.equal(module.weight, w)


@pytest.mark.parametrize("trainable", [False, True], ids=["frozen", "trainable"])
def test_whoever_replaces_it_is_told_what_to_do(w: torch.Tensor, trainable: bool) -> None:
    module = linear_of(matrix_of(w, NM(2, 4)), torch.randn(8), trainable=trainable)
    with pytest.raises(KernelError, match=r"registering the parameter 'weight' .* revert the model first"):
        module.weight = nn.Parameter(w)
    with pytest.raises(KernelError, match=r"setting it .* revert the model first"):
        module.weight = w
    for name in ("weight", "bias"):
        with pytest.raises(KernelError, match=rf"registering the parameter '{name}_orig' .* revert the model first"):
            prune.l1_unstructured(copy.deepcopy(module), name, 0.5)
    assert torch.equal(module.weight, w)


def test_a_frozen_weight_does_not_pretend_to_be_trained(module: SparseLinear) -> None:
    with pytest.raises(KernelError, match=r"training it .* revert the model first"):
        module.weight.requires_grad_()
    assert module.weight.requires_grad_(False).grad is None


@pytest.mark.parametrize("trainable", [False, True], ids=["frozen", "trainable"])
def test_views_of_it_are_right(w: torch.Tensor, trainable: bool) -> None:
    module = linear_of(matrix_of(w, NM(2, 4)), trainable=trainable)
    weight, mirror = module.weight, w.clone()
    for view in (lambda t: t.t(), lambda t: t[2:5, ::3], lambda t: t.view(4, 24).t()[1], lambda t: t.split(3)[2]):
        assert torch.equal(view(weight), view(mirror))
        assert view(weight).stride() == view(mirror).stride()
    assert torch.equal(torch.cat(weight.unbind(1)), torch.cat(mirror.unbind(1)))


def test_of_a_trainable_layer_it_is_differentiable(w: torch.Tensor) -> None:
    module = linear_of(matrix_of(w, NM(2, 4)), trainable=True)
    module.weight.square().sum().backward()
    values = module.get_parameter("values")
    assert torch.equal(values.grad, 2 * values)  # type: ignore[arg-type]


def test_asking_a_trainable_layer_for_its_looks_rebuilds_nothing(
    w: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = linear_of(matrix_of(w, NM(2, 4)), trainable=True)
    monkeypatch.setitem(EXPAND, "nm_linear", lambda *args: pytest.fail("it was rebuilt"))
    weight = module.weight
    assert (weight.dtype, weight.shape, weight.requires_grad) == (torch.float32, (8, 12), True)
    assert weight.t().detach().shape == (12, 8)


@pytest.mark.parametrize("pattern", [NM(2, 4), Block(4, 4), Unstructured()], ids=str)
def test_its_gradients_are_those_of_the_dense_weight(pattern: Pattern) -> None:
    w = torch.where(keep_mask(pattern, 8, 12), torch.randn(8, 12), 0.0).double()
    module = linear_of(matrix_of(w.float(), pattern), trainable=True)
    values = next(module.parameters())
    x, dense = torch.randn(3, 12), w.float().clone().requires_grad_()

    def loss(weight: torch.Tensor) -> torch.Tensor:
        return (nn.functional.linear(x, weight).tanh() + weight.t()[:8, :3].t().sum()).square().sum()

    (dw,) = torch.autograd.grad(loss(dense), dense, create_graph=True)
    (dv,) = torch.autograd.grad(loss(module.weight), values, create_graph=True)
    expected = torch.autograd.grad(dw[w != 0].square().sum(), dense)[0]
    torch.testing.assert_close(dv.sum(), dw[w != 0].sum(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(dv.square().sum(), dw[w != 0].square().sum(), rtol=1e-4, atol=1e-4)
    second = torch.autograd.grad(dv.square().sum(), values)[0]
    torch.testing.assert_close(second.square().sum(), expected[w != 0].square().sum(), rtol=1e-4, atol=1e-4)


def test_a_weight_that_was_read_is_what_its_gradient_is_taken_with(w: torch.Tensor) -> None:
    module, x = linear_of(matrix_of(w, NM(2, 4)), trainable=True), torch.randn(3, 12, requires_grad=True)
    y = nn.functional.linear(x, module.weight)
    with torch.no_grad():
        module.get_parameter("values").mul_(0)
    y.sum().backward()
    torch.testing.assert_close(x.grad, torch.ones(3, 8) @ w)
    assert not module.weight.detach().count_nonzero()
