"""The Triton kernels' arithmetic, run by Triton's interpreter on the CPU, against float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ajour.formats import SparseMatrix
from ajour.ops.bitmap_linear import triton_kernel as bitmap_triton
from ajour.ops.block_linear import triton_kernel as block_triton
from ajour.ops.nm_linear import triton_kernel as nm_triton
from ajour.terms.pattern import NM, Block, Pattern, Unstructured
from ajour.terms.problem import ACTIVATIONS
from ajour.terms.row_table import parse_row_table
from pruned import bits, keep_mask, matrix_of, stored_places, truth

pytestmark = [  # numpy under the interpreter
    pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.runtime.interpreter"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:triton.runtime.interpreter"),
]
KERNELS = {NM: nm_triton, Block: block_triton, Unstructured: bitmap_triton}
PATTERNS: tuple[Pattern, ...] = (
    *(NM(*p) for p in ((2, 4), (1, 4), (1, 2), (2, 8), (3, 5), (4, 8), (7, 32))),
    *(Block(*p) for p in ((32, 32), (16, 16), (64, 64), (128, 32), (17, 48))),
    Unstructured(),
)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SHAPES = ((1, 1, 1), (3, 5, 33), (17, 100, 64), (16, 64, 160), (33, 31, 8))


def drawn(pattern: Pattern, n: int, k: int, dtype: torch.dtype, density: float = 0.4) -> SparseMatrix:
    w = torch.where(keep_mask(pattern, n, k, density), torch.randn(n, k), 0.0)
    return matrix_of(w.to(dtype), pattern)


def run(
    x: Tensor,
    matrix: SparseMatrix,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
    config: str = "",
) -> Tensor:
    n, k = matrix.shape
    packed = list(matrix.tensors().values())
    text = f"{n}x{k} {str(matrix.dtype)[6:]} {matrix.pattern} | * triton 0:{len(packed)} {config}".rstrip()
    entry = parse_row_table(text).at(x.shape[0])
    return KERNELS[type(matrix.pattern)].run(x, packed, bias, residual, activation, entry)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_the_kernel_is_within_the_error_rule(pattern: Pattern, dtype: torch.dtype) -> None:
    for turn, (m, n, k) in enumerate(SHAPES):
        matrix = drawn(pattern, n, k, dtype)
        x = torch.randn(m, k).to(dtype)
        bias = torch.randn(n).to(dtype) if turn % 2 else None
        residual = torch.randn(m, n).to(dtype) if turn % 3 == 1 else None
        activation = ACTIVATIONS[turn % len(ACTIVATIONS)]
        expected = truth(x, matrix.to_dense(), bias, residual, activation)
        y = run(x, matrix, bias, residual, activation)
        assert y.dtype == dtype
        expected.check(y, f"{pattern} {m}x{n}x{k} {activation}")


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("pattern", [NM(2, 4), Block(16, 16), Unstructured()], ids=str)
def test_bias_activation_and_residual_are_fused_in_that_order(pattern: Pattern, activation: str) -> None:
    matrix = drawn(pattern, 20, 36, torch.float32)
    for bias in (None, torch.randn(20)):
        for residual in (None, torch.randn(5, 20)):
            x = torch.randn(5, 36)
            expected = truth(x, matrix.to_dense(), bias, residual, activation)
            expected.check(run(x, matrix, bias, residual, activation), f"{pattern} {activation}")


@pytest.mark.parametrize("config", ["m16 n16 k32 w4 s2", "m32 n32 k64 w4 s3", "m64 n64 k32 w8 s2"])
@pytest.mark.parametrize("pattern", [NM(2, 4), NM(3, 5), Block(48, 80), Block(128, 32), Unstructured()], ids=str)
def test_every_tile_gives_the_same_layer(pattern: Pattern, config: str) -> None:
    matrix = drawn(pattern, 90, 130, torch.float32)
    x = torch.randn(40, 130)
    truth(x, matrix.to_dense(), None, None, "none").check(run(x, matrix, config=config), f"{pattern} {config}")


@pytest.mark.parametrize("pattern", [NM(2, 4), Block(16, 16), Unstructured()], ids=str)
def test_strided_x_and_repeated_runs(pattern: Pattern) -> None:
    matrix = drawn(pattern, 20, 36, torch.float32)
    for x in (
        torch.randn(12, 36)[::2],
        torch.randn(36, 6).t(),
        torch.randn(1, 36).expand(6, -1),
        torch.randn(6, 40)[:, 3:39],
    ):
        y = run(x, matrix)
        truth(x, matrix.to_dense(), None, None, "none").check(y, f"{pattern} {x.stride()}")
        assert torch.equal(bits(y), bits(run(x, matrix)))


@pytest.mark.parametrize("density", [0.0, 1.0])
@pytest.mark.parametrize("pattern", [Block(32, 16), Unstructured()], ids=str)
def test_all_zeros_and_no_zeros(pattern: Pattern, density: float) -> None:
    matrix = drawn(pattern, 40, 70, torch.float32, density)
    x, bias = torch.randn(7, 70), torch.randn(40)
    truth(x, matrix.to_dense(), bias, None, "gelu").check(run(x, matrix, bias, None, "gelu"), f"{pattern} {density}")


@pytest.mark.parametrize("pattern", [NM(2, 4), NM(3, 5), Block(16, 16), Block(17, 20), Unstructured()], ids=str)
def test_inf_and_nan_in_x_reach_only_the_outputs_that_store_their_column(pattern: Pattern) -> None:
    matrix = drawn(pattern, 33, 50, torch.float32)
    x = torch.randn(5, 50)
    x[0, 3], x[2, 49], x[2, 7], x[4, 20] = float("nan"), float("inf"), -float("inf"), -float("inf")
    products = torch.where(stored_places(matrix), x.double()[:, None] * matrix.to_dense().double(), 0.0)
    y, expected = run(x, matrix).double(), products.sum(-1)
    assert torch.equal(y.isnan(), expected.isnan())
    assert torch.equal(y[y.isinf()], expected[expected.isinf()])
    torch.testing.assert_close(y, expected, equal_nan=True, rtol=1e-5, atol=1e-5)
