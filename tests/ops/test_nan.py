"""NaN stays NaN in every kernel, whatever activation is fused into it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from ajour.formats import SparseMatrix
from ajour.ops import LINEAR_OPS
from ajour.ops.functional import problem_of
from ajour.ops.library import LinearOp
from ajour.ops.prepare import prepare
from ajour.terms.pattern import NM, Block, Dense, Pattern, Unstructured
from ajour.terms.problem import ACTIVATIONS
from pruned import Split, keep_mask, matrix_of

PATTERNS: dict[str, Pattern] = {
    "nm_linear": NM(2, 4),
    "block_linear": Block(16, 16),
    "bitmap_linear": Unstructured(),
    "split_linear": Split(),
    "dense_linear": Dense(),
}
KERNELS = [(op, kernel) for op in PATTERNS for kernel in LINEAR_OPS[op].kernels]


def calls(op: LinearOp, kernel: str, matrix: SparseMatrix, m: int) -> Iterator[tuple[list[Tensor], str, str]]:
    """(packed tensors, row table, activation) for each that the kernel takes."""
    for activation in ACTIVATIONS:
        problem = problem_of(matrix, m, activation)
        if op.kernel(kernel).why_not(problem) is None:
            for config in op.kernel(kernel).configs(problem):
                yield *prepare(op, matrix, [(None, kernel, config)]), activation


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("name", "kernel"), KERNELS)
def test_every_activation_keeps_nan(name: str, kernel: str, dtype: torch.dtype) -> None:
    op, pattern = LINEAR_OPS[name], PATTERNS[name]
    w = torch.where(keep_mask(pattern, 64, 96), torch.randn(64, 96), 0.0).to(dtype)
    matrix, alive = matrix_of(w, pattern), w.any(1)
    for m in (1, 8, 80):
        x, bias = torch.randn(m, 96).to(dtype), torch.randn(64).to(dtype)
        x[0], bias[5] = torch.nan, torch.nan
        for packed, table, activation in calls(op, kernel, matrix, m):
            y = op.call(x, packed, bias, table, activation)
            lost = int((~y[0, alive].isnan()).sum() + (~y[:, 5].isnan()).sum())
            assert not lost, f"{table!r} {activation}, {m} rows: {lost} NaN became numbers"
