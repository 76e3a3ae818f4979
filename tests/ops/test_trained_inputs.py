"""Inputs as trained layers see them: a few columns are far larger, so that one long chain of additions rounds badly."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch.nn import functional

from ajour._native import native
from ajour.ops.functional import linear, op_of, problem_of
from ajour.terms.pattern import NM, Block, Pattern, Unstructured
from pruned import keep_mask, matrix_of, truth

LEVELS = ("portable", "avx2", "avx512", "avx512bf16")
PRESENT = LEVELS[: LEVELS.index(native.best_cpu_isa()) + 1]


@pytest.fixture(params=PRESENT)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    before = native.cpu_isa()
    native.set_cpu_isa(request.param)
    yield request.param
    native.set_cpu_isa(before)


@pytest.mark.parametrize("density", [0.2, 0.5])
@pytest.mark.parametrize(
    "pattern", [NM(1, 4), Block(32, 32), Block(16, 16), Block(4, 1), Block(5, 7), Unstructured()], ids=str
)
def test_outlier_columns_stay_within_the_error_rule(isa: str, pattern: Pattern, density: float) -> None:
    for k in (1536, 4096):
        w = torch.randn(96, k) * keep_mask(pattern, 96, k, density)
        matrix, scale = matrix_of(w, pattern), torch.randn(k).exp()
        for m in (1, 7, 33, 128):
            x = functional.gelu(torch.randn(m, k)) * scale
            right = truth(x, w, None, None, "none")
            for name, kernel in op_of(matrix).kernels.items():
                if name.startswith("cpu") and kernel.why_not(problem_of(matrix, m)) is None:
                    right.check(linear(x, matrix, kernel=name), f"{name} {isa} {m}x{k}")
