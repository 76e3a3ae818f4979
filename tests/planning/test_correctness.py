"""The oracle accepts what is right by the error rule, and nothing else."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.nn.functional import linear

from ajour.planning.correctness import Oracle

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def _problem(m: int, dtype: torch.dtype, n: int = 33, k: int = 70) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return torch.randn(m, k).to(dtype), torch.randn(n, k).to(dtype), torch.randn(n).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("m", [1, 5, 200])
def test_a_right_answer_passes(m: int, dtype: torch.dtype) -> None:
    x, w, bias = _problem(m, dtype)
    oracle = Oracle.of(x, w, bias)
    assert oracle.error_ratio(linear(x, w, bias)) <= 1
    assert oracle.error_ratio(linear(x.double(), w.double(), bias.double()).to(dtype)) <= 1


def _row_left_out(y: torch.Tensor) -> torch.Tensor:
    y[y.shape[0] // 2] = 0.5
    return y


def _nan(y: torch.Tensor) -> torch.Tensor:
    y[-1, -1] = float("nan")
    return y


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("multiplications", [3e8, 1.0])
@pytest.mark.parametrize(
    "spoil",
    [_row_left_out, _nan, lambda y: y * 1.05, lambda y: y[:-1], lambda y: y.double(), lambda y: y + 0.5],
    ids=["row left out", "nan", "scaled", "shape", "dtype", "bias twice"],
)
def test_a_wrong_answer_fails_even_where_rows_are_sampled(
    spoil: Callable[[torch.Tensor], torch.Tensor], multiplications: float, dtype: torch.dtype
) -> None:
    x, w, bias = _problem(101, dtype)
    oracle = Oracle.of(x, w, bias, multiplications)
    assert oracle.error_ratio(linear(x, w, bias)) <= 1
    assert oracle.error_ratio(spoil(linear(x, w, bias))) > 1


def test_all_rows_settle_what_an_unlucky_sample_leaves_in_doubt() -> None:
    x, w, bias = _problem(400, torch.float32)
    oracle = Oracle.of(x, w, bias, 1.0)
    y = linear(x, w, bias)
    y[0, 0] += 1.5 * oracle.bound  # row 0 is sampled
    worst = 2 * float((oracle.dense.double() - oracle.everywhere.exact).abs().max())
    assert oracle.error_ratio(y) == oracle.everywhere.error_ratio(y)
    assert oracle.everywhere.bound >= worst
    y[0, 0] += 100 * oracle.bound
    assert oracle.error_ratio(y) > 1


def test_first_and_last_rows_are_always_compared() -> None:
    x, w, bias = _problem(1000, torch.float32)
    rows = Oracle.of(x, w, bias, 1.0).rows.tolist()
    assert (rows[0], rows[-1]) == (0, 999)
    assert len(rows) == len(set(rows)) == 16


@pytest.mark.parametrize("odd", [float("inf"), float("-inf"), float("nan")])
def test_a_weight_with_inf_or_nan_can_be_right_and_wrong(odd: float) -> None:
    x, w, bias = _problem(9, torch.float32)
    w[3, 4] = odd
    oracle = Oracle.of(x, w, bias)
    y = linear(x, w, bias)
    assert oracle.error_ratio(y) <= 1
    assert oracle.error_ratio(y.nan_to_num(0, 0, 0)) == float("inf")


def test_a_weight_of_zeros_leaves_no_room_for_error() -> None:
    x = torch.randn(4, 8)
    oracle = Oracle.of(x, torch.zeros(3, 8), None)
    assert oracle.error_ratio(torch.zeros(4, 3)) == 0
    assert oracle.error_ratio(torch.full((4, 3), 1e-30)) == float("inf")
