"""ajour.linear: the functional form."""

from __future__ import annotations

import pytest
import torch

from ajour.formats import ScaledNMMatrix, SparseMatrix, SplitMatrix
from ajour.ops import LINEAR_OPS
from ajour.ops.calls import count_calls
from ajour.ops.functional import linear, op_of, problem_of
from ajour.terms.errors import KernelError
from ajour.terms.pattern import NM, Block, Dense, Pattern, Unstructured
from ajour.terms.problem import ACTIVATIONS
from pruned import keep_mask, matrix_of, truth

PATTERNS: tuple[Pattern, ...] = (NM(2, 4), Block(8, 4), Unstructured(), Dense())


def drawn(pattern: Pattern, n: int = 24, k: int = 40) -> SparseMatrix:
    return matrix_of(torch.where(keep_mask(pattern, n, k), torch.randn(n, k), 0.0), pattern)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_linear_is_the_dense_layer_of_the_matrix(pattern: Pattern, activation: str) -> None:
    matrix = drawn(pattern)
    x, bias, residual = torch.randn(2, 3, 40), torch.randn(24), torch.randn(2, 3, 24)
    y = linear(x, matrix, bias, activation=activation, residual=residual)
    truth(x, matrix.to_dense(), bias, residual, activation).check(y, str(pattern))


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_linear_takes_the_named_kernel_and_the_first_that_accepts_otherwise(pattern: Pattern) -> None:
    matrix = drawn(pattern)
    op, x = op_of(matrix), torch.randn(3, 40)
    with count_calls() as calls:
        linear(x, matrix)
        linear(x, matrix, kernel="aten")
    assert calls.kernels[op.name, op.first(problem_of(matrix, 3)).name] >= 1
    assert calls.kernels[op.name, "aten"] >= 1
    assert calls.ops[op.name] == 2


def test_the_packed_form_is_made_once() -> None:
    matrix = drawn(NM(2, 4))
    linear(torch.randn(3, 40), matrix, kernel="reference")
    held = dict(matrix.prepared)
    linear(torch.randn(5, 40), matrix, kernel="reference")
    assert matrix.prepared.keys() == held.keys()
    assert all(matrix.prepared[key][0] is held[key][0] for key in held)


def test_linear_has_gradients() -> None:
    matrix = drawn(Block(8, 4))
    x, bias = torch.randn(3, 40, requires_grad=True), torch.randn(24, requires_grad=True)
    linear(x, matrix, bias).sum().backward()
    torch.testing.assert_close(x.grad, matrix.to_dense().sum(0).expand(3, -1))
    torch.testing.assert_close(bias.grad, torch.full((24,), 3.0))


def test_a_kernel_that_refuses_says_why() -> None:
    matrix = drawn(NM(2, 4)).to(dtype=torch.float16)
    with pytest.raises(
        KernelError, match="nm_linear: kernel 'onednn' does not take this problem: oneDNN takes float32"
    ):
        linear(torch.randn(3, 40).half(), matrix, kernel="onednn")
    with pytest.raises(KernelError, match="nm_linear has no kernel 'warp'"):
        linear(torch.randn(3, 40).half(), matrix, kernel="warp")


def test_a_matrix_of_no_op_is_refused() -> None:
    class Stranger(SparseMatrix):
        NAMES = ("values",)

    with pytest.raises(KernelError, match="no op reads a Stranger; expected one of nm_linear"):
        linear(torch.randn(3, 4), Stranger({"values": torch.randn(3)}, Dense(), (3, 4)))


def test_every_format_has_its_op() -> None:
    others = SplitMatrix.from_dense(torch.randn(4, 8)), ScaledNMMatrix.quantize(torch.zeros(4, 8).half())
    matrices = [*map(drawn, PATTERNS), *others]
    assert {op_of(matrix).name for matrix in matrices} == set(LINEAR_OPS)
