"""Gradients of x, bias, residual and values, against numerical ones and against the dense layer's."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional

from ajour.formats import SparseMatrix
from ajour.ops import LINEAR_OPS, gradients
from ajour.ops.functional import op_of, problem_of
from ajour.ops.prepare import prepare
from ajour.terms.errors import KernelError
from ajour.terms.pattern import NM, Block, Dense, Pattern, Unstructured
from ajour.terms.problem import ACTIVATIONS
from pruned import Split, activate, keep_mask, matrix_of

PATTERNS: tuple[Pattern, ...] = (
    NM(2, 4),
    NM(3, 5),
    NM(7, 32),
    Block(4, 3),
    Block(16, 16),
    Unstructured(),
    Split(),
    Dense(),
)


def drawn(pattern: Pattern, n: int, k: int, dtype: torch.dtype = torch.float64) -> SparseMatrix:
    return matrix_of(torch.where(keep_mask(pattern, n, k), torch.randn(n, k, dtype=dtype), 0.0), pattern)


def trained(matrix: SparseMatrix) -> tuple[list[Tensor], str]:
    packed, table = prepare(op_of(matrix), matrix, [(None, "aten" if matrix.pattern == Dense() else "reference", "")])
    return [packed[0].detach().clone().requires_grad_(), *packed[1:]], table


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_gradients_are_the_numerical_ones(pattern: Pattern, activation: str) -> None:
    matrix = drawn(pattern, 5, 7)
    packed, table = trained(matrix)
    x = torch.randn(2, 3, 7, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(5, dtype=torch.float64, requires_grad=True)
    residual = torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True)

    def call(x: Tensor, values: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
        return gradients.linear(op_of(matrix), x, [values, *packed[1:]], bias, table, activation, residual)

    assert torch.autograd.gradcheck(call, (x, packed[0], bias, residual))
    if activation == "none":
        assert torch.autograd.gradgradcheck(call, (x, packed[0], bias, residual))


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_the_gradient_of_values_is_the_dense_gradient_at_the_stored_places(pattern: Pattern) -> None:
    matrix = drawn(pattern, 33, 50)
    packed, table = trained(matrix)
    x = torch.randn(9, 50, dtype=torch.float64)
    dy = torch.randn(9, 33, dtype=torch.float64)
    gradients.linear(op_of(matrix), x, packed, None, table).backward(dy)
    stored = {name: packed[0].grad if place == 0 else t for place, (name, t) in enumerate(matrix.tensors().items())}
    found = type(matrix)(stored, pattern, matrix.shape).to_dense()
    places = type(matrix)({**matrix.tensors(), matrix.NAMES[0]: torch.ones_like(packed[0])}, pattern, matrix.shape)
    torch.testing.assert_close(found, (dy.T @ x) * places.to_dense())


# x is rounded by scaled_nm_linear, whose gradient is not the dense layer's: test_scaled_nm_linear.py
KERNELS = [(op.name, name) for op in LINEAR_OPS.values() if op.name != "scaled_nm_linear" for name in op.kernels]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=lambda d: str(d)[6:])
@pytest.mark.parametrize(("name", "kernel"), KERNELS)
def test_every_kernel_has_the_dense_layers_gradients(name: str, kernel: str, dtype: torch.dtype) -> None:
    op = LINEAR_OPS[name]
    for pattern in (p for p in PATTERNS if op_of(drawn(p, 4, 4)).name == name):
        matrix = drawn(pattern, 40, 70, dtype)
        problem = problem_of(matrix, 12, "gelu")
        if op.kernel(kernel).why_not(problem) is not None:
            continue
        packed, table = prepare(op, matrix, [(None, kernel, op.kernel(kernel).configs(problem)[0])])
        x, bias, residual = (
            torch.randn(*shape).to(dtype).requires_grad_() for shape in ((3, 4, 70), (40,), (3, 4, 40))
        )
        dy = torch.randn(3, 4, 40).to(dtype)
        inputs = (x, bias, residual)
        y = activate(functional.linear(x, matrix.to_dense(), bias), "gelu") + residual
        expected = torch.autograd.grad(y, inputs, dy)
        found = torch.autograd.grad(gradients.linear(op, x, packed, bias, table, "gelu", residual), inputs, dy)
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=2e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-4)


def test_without_a_need_for_gradients_the_bare_op_is_called() -> None:
    matrix = drawn(NM(2, 4), 8, 8)
    packed, table = prepare(op_of(matrix), matrix, [(None, "reference", "")])
    x = torch.randn(2, 8, dtype=torch.float64)
    assert gradients.linear(op_of(matrix), x, packed, None, table).grad_fn is None
    with torch.no_grad():
        y = gradients.linear(op_of(matrix), x.requires_grad_(), packed, None, table)
    assert not y.requires_grad


def test_only_the_needed_gradients_are_computed() -> None:
    matrix = drawn(NM(2, 4), 8, 8)
    packed, table = trained(matrix)
    x, bias = torch.randn(2, 8, dtype=torch.float64), torch.randn(8, dtype=torch.float64, requires_grad=True)
    gradients.linear(op_of(matrix), x, [packed[0].detach(), packed[1]], bias, table).sum().backward()
    assert torch.equal(bias.grad, torch.full((8,), 2.0, dtype=torch.float64))
    assert packed[0].grad is None


def test_values_can_be_trained_beside_a_kernel_of_another_packing() -> None:
    matrix = drawn(NM(2, 4), 8, 8)
    op = op_of(matrix)
    packed, table = prepare(op, matrix, [(4, "aten", ""), (None, "reference", "")])
    packed[1] = packed[1].requires_grad_()
    dy = torch.randn(6, 8, dtype=torch.float64)
    x = torch.randn(6, 8, dtype=torch.float64)
    gradients.linear(op, x, packed, None, table).backward(dy)
    alone, plain = trained(matrix)
    gradients.linear(op, x, alone, None, plain).backward(dy)
    assert torch.equal(packed[1].grad, alone[0].grad)


def test_values_in_a_form_that_cannot_be_trained_are_refused() -> None:
    matrix = drawn(NM(2, 4), 8, 8)
    packed, table = prepare(op_of(matrix), matrix, [(None, "aten", "")])
    packed[0].requires_grad_()
    with pytest.raises(
        KernelError, match="packed tensor 0 requires a gradient, but only values in their canonical form"
    ):
        gradients.linear(op_of(matrix), torch.randn(2, 8, dtype=torch.float64), packed, None, table)


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_transforms_and_forward_mode_are_those_of_the_dense_layer(pattern: Pattern, grad: bool) -> None:
    matrix = drawn(pattern, 9, 14, torch.float32)
    w, op = matrix.to_dense(), op_of(matrix)
    packed, table = prepare(op, matrix, [(None, op.first(problem_of(matrix, 6)).name, "")])
    bias, x, direction = torch.randn(9), torch.randn(6, 14), torch.randn(6, 14)

    def ours(x: Tensor) -> Tensor:
        return gradients.linear(op, x, packed, bias, table, "silu")

    def dense(x: Tensor) -> Tensor:
        return functional.silu(functional.linear(x, w, bias))

    ours(x)  # from now on the compiled part knows the table
    with torch.set_grad_enabled(grad):
        for of in (
            lambda f: torch.func.jvp(f, (x,), (direction,))[1],
            lambda f: torch.func.vmap(f)(x),
            lambda f: torch.func.jacfwd(f)(x),
            lambda f: torch.func.jacrev(f)(x),
            lambda f: torch.func.grad(lambda x: f(x).sum())(x),
        ):
            assert torch.allclose(of(ours), of(dense), atol=1e-5)
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(x, direction)
            mine, theirs = (forward_ad.unpack_dual(f(dual)).tangent for f in (ours, dense))
            assert torch.allclose(mine, theirs, atol=1e-5)


def test_values_are_differentiated_by_transforms_too() -> None:
    matrix = drawn(Block(4, 3), 8, 9)
    packed, table = trained(matrix)
    x, op = torch.randn(5, 9, dtype=torch.float64), op_of(matrix)

    def loss(values: Tensor) -> Tensor:
        return gradients.linear(op, x, [values, *packed[1:]], None, table).square().sum()

    found = torch.func.grad(loss)(packed[0].detach())
    loss(packed[0]).backward()
    assert torch.allclose(found, packed[0].grad)


def test_x_may_change_after_a_frozen_layer() -> None:
    matrix = drawn(NM(2, 4), 6, 8)
    packed, table = prepare(op_of(matrix), matrix, [(None, "reference", "")])
    x, bias = torch.randn(3, 8, dtype=torch.float64), torch.randn(6, dtype=torch.float64, requires_grad=True)
    y = gradients.linear(op_of(matrix), x, packed, bias, table)
    x.zero_()
    y.sum().backward()
    assert torch.equal(bias.grad, torch.full((6,), 3.0, dtype=torch.float64))


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_many_gradients_at_once_are_each_ones(pattern: Pattern) -> None:
    matrix = drawn(pattern, 9, 14, torch.float32)
    packed, table = prepare(op_of(matrix), matrix, [(None, op_of(matrix).first(problem_of(matrix, 6)).name, "")])
    x, dy = torch.randn(6, 14, requires_grad=True), torch.randn(3, 6, 9)
    y = gradients.linear(op_of(matrix), x, packed, None, table)
    (dx,) = torch.autograd.grad(y, x, dy, is_grads_batched=True, retain_graph=True)
    assert torch.allclose(dx, dy @ matrix.to_dense(), atol=1e-5)
    mapped = torch.func.vmap(lambda dy: torch.autograd.grad(y, x, dy, retain_graph=True)[0])(dy)
    assert torch.allclose(mapped, dx, atol=1e-5)


def test_a_tangent_that_a_gradient_of_blocks_would_drop_is_refused() -> None:
    matrix = drawn(Block(4, 3), 8, 9)
    packed, table = trained(matrix)
    x, dy = torch.randn(5, 9, dtype=torch.float64), torch.randn(5, 8, dtype=torch.float64)
    y = gradients.linear(op_of(matrix), x, packed, None, table)
    with forward_ad.dual_level(), pytest.raises(KernelError, match="no gradient of its values under a transform"):
        torch.autograd.grad(y, packed[0], forward_ad.make_dual(dy, torch.ones_like(dy)), retain_graph=True)
    (found,) = torch.autograd.grad(y, packed[0], dy)
    assert found.abs().sum() > 0
