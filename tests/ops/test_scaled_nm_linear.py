"""scaled_nm_linear is a linear layer on rounded numbers: within the rule against float64 on those, and nothing else."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import ajour
from ajour.formats import ScaledNMMatrix
from ajour.formats.e4m3 import rounded
from ajour.ops import SCALED_NM_LINEAR
from ajour.ops.functional import problem_of
from ajour.ops.prepare import prepare, restore
from ajour.terms.errors import KernelError
from ajour.terms.pattern import NM
from ajour.terms.problem import ACTIVATIONS
from pruned import bits, keep_mask, truth

DTYPES = (torch.bfloat16, torch.float16)
KERNELS = tuple(SCALED_NM_LINEAR.kernels)
ON_CPU = ("cpu", "cpu_unpack", "reference")


def matrix_of(n: int, k: int, dtype: torch.dtype, skew: bool = False) -> ScaledNMMatrix:
    w = torch.where(keep_mask(NM(2, 4), n, k, skew=skew), torch.randn(n, k) * torch.randn(n, 1).exp(), 0.0)
    return ScaledNMMatrix.quantize(w.to(dtype))


def run(kernel: str, x: Tensor, matrix: ScaledNMMatrix, *rest: Tensor | None, activation: str = "none") -> Tensor:
    bias, residual = (*rest, None, None)[:2]
    packed, table = prepare(SCALED_NM_LINEAR, matrix, [(None, kernel, "")])
    return SCALED_NM_LINEAR.call(x, packed, bias, table, activation, residual)


@pytest.mark.parametrize("kernel", ON_CPU)
@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(
    sizes=st.tuples(st.sampled_from([0, 1, 3, 8, 33, 64, 97]), st.integers(0, 90), st.integers(0, 150)),
    dtype=st.sampled_from(DTYPES), activation=st.sampled_from(ACTIVATIONS), outliers=st.booleans(),
    extras=st.tuples(st.booleans(), st.booleans(), st.booleans()), seed=st.integers(0, 1000),
)  # fmt: skip
def test_every_kernel_is_within_the_error_rule_on_the_rounded_numbers(
    kernel: str, sizes: tuple[int, int, int], dtype: torch.dtype, activation: str, outliers: bool,
    extras: tuple[bool, bool, bool], seed: int,
) -> None:  # fmt: skip
    """float64 of the dequantized x times the dequantized weight; the dense error is torch's on the same two."""
    torch.manual_seed(seed)
    m, n, k = sizes
    matrix, x = matrix_of(n, k, dtype, extras[2]), torch.randn(m, k)
    if outliers and k:
        x[:, :: max(1, k // 3)] *= 60
    x = x.to(dtype)
    if SCALED_NM_LINEAR.kernel(kernel).why_not(problem_of(matrix, m, activation)):
        return
    if not (n and k):  # oneDNN, one half of the truth, takes no empty product
        assert run(kernel, x, matrix).eq(0).all()
        return
    bias = torch.randn(n).to(dtype) if extras[0] else None
    residual = torch.randn(m, n).to(dtype) if extras[1] else None
    y = run(kernel, x, matrix, bias, residual, activation=activation)
    assert y.dtype == dtype
    truth(rounded(x), matrix.to_dense(), bias, residual, activation).check(y, f"{kernel} {sizes} {dtype} {activation}")
    again = run(kernel, x, matrix, bias, residual, activation=activation)
    assert torch.equal(bits(y), bits(again)), "two runs differ"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kernel", KERNELS)
def test_unpack_is_the_bit_exact_inverse_of_prepack(kernel: str, dtype: torch.dtype) -> None:
    """cuda_sm90 packs and unpacks with torch alone, for the sides that it takes, so it needs no GPU here."""
    record = SCALED_NM_LINEAR.kernel(kernel)
    sides = ((8, 32), (104, 160), (520, 224)) if kernel == "cuda_sm90" else ((1, 1), (33, 100), (100, 31), (64, 160))
    for n, k in sides:
        matrix = matrix_of(n, k, dtype)
        if kernel == "cuda_sm90" and dtype == torch.float16:
            continue
        for config in dict.fromkeys(("", *(record.configs(problem_of(matrix, 256)) if kernel in ON_CPU else ()))):
            packed, table = prepare(SCALED_NM_LINEAR, matrix, [(None, kernel, config)])
            back = restore(SCALED_NM_LINEAR, packed, table)
            for name, tensor in matrix.tensors().items():
                assert torch.equal(back.tensors()[name].view(torch.uint8), tensor.view(torch.uint8)), f"{table}: {name}"
            assert torch.equal(bits(SCALED_NM_LINEAR.weight(packed, table)), bits(matrix.to_dense()))


@pytest.mark.parametrize("kernel", ON_CPU)
def test_a_row_with_inf_or_nan_gives_nan_and_spoils_no_other(kernel: str) -> None:
    matrix, x = matrix_of(40, 64, torch.bfloat16), torch.randn(70, 64).bfloat16()
    clean = run(kernel, x, matrix)
    x[3, 5], x[69, 0], x[10, 63] = float("nan"), float("inf"), -float("inf")
    y = run(kernel, x, matrix)
    spoilt = torch.zeros(70, dtype=torch.bool).index_fill(0, torch.tensor([3, 10, 69]), True)
    assert y[spoilt].isnan().all()
    assert torch.equal(bits(y[~spoilt]), bits(clean[~spoilt]))


def test_rows_keep_their_own_scales() -> None:
    """Rows of very different size are as exact as if they were alone."""
    matrix, x = matrix_of(33, 100, torch.bfloat16), torch.randn(5, 100).bfloat16()
    x *= torch.tensor([[1.0], [1e-20], [1e20], [0.0], [3e-3]]).bfloat16()
    together = ajour.linear(x, matrix, kernel="reference")
    for row in range(5):
        alone = truth(rounded(x[row : row + 1]), matrix.to_dense(), None, None, "none")
        alone.check(together[row : row + 1], f"row {row}")


def test_the_gradient_is_that_of_the_layer_without_rounding_x() -> None:
    matrix, x = matrix_of(24, 32, torch.bfloat16), torch.randn(6, 32).bfloat16().requires_grad_()
    for kernel in ("cpu", "reference"):
        (dx,) = torch.autograd.grad(ajour.linear(x, matrix, kernel=kernel).sum(), x)
        expected = torch.ones(6, 24).double() @ matrix.to_dense().double()
        assert float((dx.double() - expected).abs().max()) <= 2**-7 * float(expected.abs().max())


def test_x_of_another_dtype_is_refused() -> None:
    with pytest.raises(KernelError, match="x is float32, the weight is bfloat16"):
        ajour.linear(torch.randn(2, 32), matrix_of(8, 32, torch.bfloat16))
