"""scaled_nm_linear's Triton kernels, run by Triton's interpreter: rounding exactly, products against float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ajour.formats import ScaledNMMatrix
from ajour.formats.e4m3 import E4M3, EXPONENTS, rounded, unround
from ajour.ops.scaled_nm_linear import triton_kernel
from ajour.terms.pattern import NM
from ajour.terms.problem import ACTIVATIONS
from ajour.terms.row_table import parse_row_table
from pruned import bits, keep_mask, truth

pytestmark = [  # numpy under the interpreter
    pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.runtime.interpreter"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:triton.runtime.interpreter"),
]
DTYPES = (torch.bfloat16, torch.float16)
SHAPES = ((1, 1, 1), (3, 5, 33), (17, 100, 64), (16, 64, 160), (33, 31, 8))


def run(x: Tensor, matrix: ScaledNMMatrix, *rest: Tensor | None, activation: str = "none", config: str = "") -> Tensor:
    bias, residual = (*rest, None, None)[:2]
    n, k = matrix.shape
    text = f"{n}x{k} {str(matrix.dtype)[6:]} 2:4 | * triton 0:3 {config}".rstrip()
    packed = list(matrix.tensors().values())
    return triton_kernel.run(x, packed, bias, residual, activation, parse_row_table(text).at(x.shape[0]))


def quantized(n: int, k: int, dtype: torch.dtype) -> ScaledNMMatrix:
    w = torch.where(keep_mask(NM(2, 4), n, k), torch.randn(n, k) * torch.randn(n, 1).exp(), 0.0)
    return ScaledNMMatrix.quantize(w.to(dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_are_rounded_exactly_as_in_plain_torch(dtype: torch.dtype) -> None:
    """Sizes from the smallest to the largest, ties, the edges where a scale changes, zeros, Inf and NaN."""
    sizes = torch.linspace(-24, 15, 40).exp2().unsqueeze(1)
    x = (torch.randn(48, 1100) * torch.cat([sizes, torch.ones(8, 1)])).to(dtype)
    x[40], x[41, 5], x[42, 7] = 0, float("nan"), -float("inf")
    x[43, 0], x[44, 0] = torch.finfo(dtype).max, torch.finfo(dtype).min
    x[45], x[46] = torch.finfo(dtype).smallest_normal / 4, 464 * 2.0**-3
    x[47] = torch.arange(1100).to(dtype) / 8  # ties among them
    low, high = EXPONENTS[dtype]
    for k, chunk in ((1, 16), (1100, 1024), (777, 256)):
        found = torch.empty(48, k, dtype=dtype)
        triton_kernel.round_rows[(48,)](x, found, k, x.stride(0), LOW=low, HIGH=high, CHUNK=chunk)
        wanted = rounded(x[:, :k])
        assert torch.equal(found.isnan(), wanted.isnan())
        assert torch.equal(found.nan_to_num(0), wanted.nan_to_num(0)), "and only the sign of a zero may differ"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_kernel_is_within_the_error_rule_on_the_rounded_numbers(dtype: torch.dtype) -> None:
    for turn, (m, n, k) in enumerate(SHAPES):
        matrix, x = quantized(n, k, dtype), torch.randn(m, k + 3).to(dtype)[:, turn % 3 : turn % 3 + k]
        bias = torch.randn(n).to(dtype) if turn % 2 else None
        residual = torch.randn(m, n).to(dtype) if turn % 3 == 1 else None
        activation = ACTIVATIONS[turn % len(ACTIVATIONS)]
        expected = truth(rounded(x), matrix.to_dense(), bias, residual, activation)
        for config in ("", "m32 n32 k32 w4 s2", "m16 n32 k128 w4 s3"):
            y = run(x, matrix, bias, residual, activation=activation, config=config)
            expected.check(y, f"{dtype} {m}x{n}x{k} {config}")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_code_is_decoded_at_every_position(dtype: torch.dtype) -> None:
    """x is a unit vector for each column in turn, so y gives the weight back, bit for bit."""
    codes = torch.arange(256, dtype=torch.uint8)
    codes = codes[((codes & 0x7F) != 0x7F) & (codes != 0x80)]
    values = unround(codes.view(E4M3).unsqueeze(0), torch.ones(1, dtype=dtype))[0]
    w = torch.zeros(6 * len(values), 4, dtype=dtype)  # every value beside 448, in every pair of positions
    for turn, pair in enumerate(((0, 1), (1, 0), (0, 2), (3, 1), (2, 3), (3, 0))):
        group = torch.arange(len(values)) + turn * len(values)
        w[group, pair[0]], w[group, pair[1]] = values, 448.0
    w = w[: 48 * 31].view(48, 31 * 4)
    matrix = ScaledNMMatrix.from_dense(w)
    y = run(torch.eye(w.shape[1], dtype=dtype), matrix, config="m64 n32 k128 w8 s2")
    assert torch.equal(bits(y), bits(w.t().contiguous()))


def test_a_row_with_inf_or_nan_gives_nan_and_spoils_no_other() -> None:
    matrix, x = quantized(40, 64, torch.bfloat16), torch.randn(20, 64).bfloat16()
    clean = run(x, matrix)
    x[3, 5], x[19, 0] = float("nan"), float("inf")
    y = run(x, matrix)
    spoilt = torch.zeros(20, dtype=torch.bool).index_fill(0, torch.tensor([3, 19]), True)
    assert y[spoilt].isnan().all()
    assert torch.equal(bits(y[~spoilt]), bits(clean[~spoilt]))
