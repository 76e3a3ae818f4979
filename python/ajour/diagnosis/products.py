"""Self-tests of the kernels that multiply by a sparse weight, and of those for its gradient."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from ajour.diagnosis.findings import Finding
from ajour.diagnosis.self_test import Case, self_test
from ajour.formats import BitmapMatrix, BlockMatrix, DenseMatrix, NMMatrix, ScaledNMMatrix, SparseMatrix, SplitMatrix
from ajour.formats.e4m3 import rounded
from ajour.ops import BLOCK_SDDMM, LINEAR_OPS
from ajour.ops.functional import linear, problem_of
from ajour.ops.library import LinearOp
from ajour.planning.correctness import Oracle
from ajour.terms.pattern import NM, Block, Dense, Unstructured
from ajour.terms.row_table import make_row_table

SIDE = 128  # of the weights of a self-test
ROWS = (1, 16, 128)
TESTED = (torch.float32, torch.bfloat16, torch.float16)


def check_products(device: str) -> Iterator[Finding]:
    """Every kernel of every linear op and of block_sddmm on a device, "cpu" or "cuda"."""
    matrices = [matrix.to(device) for matrix in _matrices()]
    for op in LINEAR_OPS.values():
        mine = [matrix for matrix in matrices if type(matrix) is op.matrix]
        for name in op.kernels:
            yield self_test(f"{op.name} · {name} ({device})", _products(op, name, mine))
    blocks = [matrix for matrix in matrices if isinstance(matrix, BlockMatrix)]
    for name in BLOCK_SDDMM.kernels:
        yield self_test(f"{BLOCK_SDDMM.name} · {name} ({device})", _sampled(name, blocks))


def _matrices() -> list[SparseMatrix]:
    """A small weight for each format and dtype."""
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(SIDE, SIDE, generator=generator)
    pairs = w * (torch.arange(SIDE) % 4 < 2)
    blocks = (w.view(-1, 32, SIDE // 32, 32) * torch.eye(SIDE // 32)[:, None, :, None]).reshape(SIDE, SIDE)
    scattered = w * (torch.rand(SIDE, SIDE, generator=generator) < 0.3)
    made: list[SparseMatrix] = []
    for dtype in TESTED:
        made += [
            NMMatrix.from_dense(pairs.to(dtype), NM(2, 4)), BlockMatrix.from_dense(blocks.to(dtype), Block(32, 32)),
            BitmapMatrix.from_dense(scattered.to(dtype), Unstructured()), DenseMatrix.from_dense(w.to(dtype), Dense()),
            SplitMatrix.from_dense(scattered.to(dtype), Unstructured()),
        ]  # fmt: skip
    return [*made, *(ScaledNMMatrix.quantize(pairs.to(dtype)) for dtype in TESTED[1:])]


def _products(op: LinearOp, name: str, matrices: Sequence[SparseMatrix]) -> Iterator[Case]:
    """x @ w.T against float64, by the rule that the planner has too."""
    for matrix in matrices:
        for m in ROWS:

            def measure(matrix: SparseMatrix = matrix, m: int = m) -> float:
                x = _random(m, matrix, m)
                return Oracle.of(x, matrix.to_dense(), None).error_ratio(linear(x, matrix, kernel=name))

            yield _what(matrix, m), op.kernels[name].why_not(problem_of(matrix, m)), measure


def _sampled(name: str, matrices: Sequence[BlockMatrix]) -> Iterator[Case]:
    """dy.T @ x at the live blocks against float64, by the same rule."""
    for matrix in matrices:
        for m in ROWS:

            def measure(matrix: BlockMatrix = matrix, m: int = m) -> float:
                (n, k), (blocks, *index) = matrix.shape, matrix.tensors().values()
                dy, x = _random(m, matrix, m), _random(m, matrix, m + 1)
                entry = (None, name, 0, len(index), "")
                table = str(make_row_table(n, k, str(matrix.dtype)[6:], matrix.pattern, [entry]))

                def dense(values: torch.Tensor) -> torch.Tensor:
                    return BlockMatrix({**matrix.tensors(), "blocks": values}, matrix.pattern, (n, k)).to_dense()

                oracle = Oracle.of(dy.T.contiguous(), x.T.contiguous(), None)
                live = dense(torch.ones_like(blocks)) == 1
                return oracle.error_ratio(torch.where(live, dense(BLOCK_SDDMM.call(dy, x, index, table)), oracle.dense))

            yield _what(matrix, m), BLOCK_SDDMM.kernels[name].why_not(problem_of(matrix, m)), measure


def _random(m: int, matrix: SparseMatrix, seed: int) -> torch.Tensor:
    x = torch.randn(m, SIDE, generator=torch.Generator().manual_seed(seed)).to(matrix.device, matrix.dtype)
    return rounded(x) if isinstance(matrix, ScaledNMMatrix) else x  # as that one's op would round it first


def _what(matrix: SparseMatrix, m: int) -> str:
    return f"{matrix.pattern}, {str(matrix.dtype)[6:]}, {m} rows"
