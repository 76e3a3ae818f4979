"""Random weights that fit a pattern, the float64 truth about a linear layer, and the error rule of every kernel."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from ajour.formats import BitmapMatrix, BlockMatrix, DenseMatrix, NMMatrix, SparseMatrix, SplitMatrix
from ajour.terms.pattern import NM, Block, Dense, Pattern, Unstructured


@dataclass(frozen=True)
class Split(Unstructured):
    """Zeros anywhere, for a matrix in two parts."""

    def __str__(self) -> str:
        return "split"


def keep_mask(pattern: Pattern, n: int, k: int, density: float = 0.4, skew: bool = False) -> Tensor:
    """bool [n, k]: where a weight pruned to the pattern is not zero. `skew` packs most of it into few rows."""
    rows = torch.rand(n, 1) ** 4 * min(1.0, 4 * density) if skew else torch.full((n, 1), density)
    if isinstance(pattern, NM):
        score = torch.rand(n, -(-k // pattern.group), pattern.group)
        mask = score.argsort(-1) < pattern.keep
        if skew:  # groups that keep less than they may
            mask &= torch.rand(mask.shape[:2]).unsqueeze(-1) < rows.unsqueeze(-1)
        return mask.flatten(1)[:, :k]
    if isinstance(pattern, Block):
        height, width = -(-n // pattern.rows), -(-k // pattern.cols)
        mask = torch.rand(height, width) < rows[:: pattern.rows]
        return mask.repeat_interleave(pattern.rows, 0)[:n].repeat_interleave(pattern.cols, 1)[:, :k]
    if isinstance(pattern, Unstructured):
        return torch.rand(n, k) < rows
    return torch.ones(n, k, dtype=torch.bool)


def matrix_of(w: Tensor, pattern: Pattern) -> SparseMatrix:
    """The matrix of the format that holds the pattern."""
    kinds: dict[type, type[SparseMatrix]] = {
        NM: NMMatrix,
        Block: BlockMatrix,
        Unstructured: BitmapMatrix,
        Split: SplitMatrix,
        Dense: DenseMatrix,
    }
    return kinds[type(pattern)].from_dense(w, pattern)


def stored_places(matrix: SparseMatrix) -> Tensor:
    """bool [n, k]: the places whose product counts, by the definition of each format: explicit zeros of it too."""
    n, k = matrix.shape
    if isinstance(matrix, SplitMatrix):
        return stored_places(matrix.pairs()) | stored_places(matrix.rest())
    if isinstance(matrix, NMMatrix):
        assert isinstance(matrix.pattern, NM)
        groups = -(-k // matrix.pattern.group)
        stored = torch.zeros(n, groups, matrix.pattern.group, dtype=torch.bool)
        stored.scatter_(-1, matrix.positions(), True)
        return stored.flatten(1)[:, :k]
    live = matrix.to_dense() != 0
    if isinstance(matrix, BlockMatrix):
        assert isinstance(matrix.pattern, Block)
        rows, cols = matrix.pattern.rows, matrix.pattern.cols
        grid = functional.pad(live, (0, -k % cols, 0, -n % rows))
        blocks = grid.view(-1, rows, grid.shape[1] // cols, cols).any(3).any(1)
        return blocks.repeat_interleave(rows, 0)[:n].repeat_interleave(cols, 1)[:, :k]
    return live


def activate(y: Tensor, activation: str) -> Tensor:
    """activation(y), spelled out here so that the oracle shares nothing with the kernels."""
    if activation == "relu":
        return functional.relu(y)
    if activation == "gelu":
        return functional.gelu(y)
    if activation == "gelu_tanh":
        return functional.gelu(y, approximate="tanh")
    if activation == "silu":
        return functional.silu(y)
    assert activation == "none"
    return y


@dataclass
class Truth:
    """What a linear layer gives in float64, and how far a kernel of x's dtype may be from it."""

    y: Tensor
    bound: float

    def check(self, y: Tensor, what: str) -> None:
        """Asserts max|e| <= 2 * max|e_dense| + 2**-23 * max(|x| @ |w|.T + |bias| + |residual|)."""
        assert y.shape == self.y.shape, f"{what}: shape {tuple(y.shape)}, expected {tuple(self.y.shape)}"
        assert not y.isnan().any(), f"{what}: {int(y.isnan().sum())} of {y.numel()} outputs are NaN"
        error = float((y.double() - self.y).abs().max()) if y.numel() else 0.0
        assert error <= self.bound, f"{what}: error {error:.3e}, allowed {self.bound:.3e}"


def truth(x: Tensor, w: Tensor, bias: Tensor | None, residual: Tensor | None, activation: str) -> Truth:
    """activation(x @ w.T + bias) + residual in float64, and the bound from torch's own dense layers in x's dtype.

    torch has two dense layers on a CPU, F.linear and oneDNN's, whose summing orders differ; e_dense is the larger error
    of the two. Bias and residual are terms of the sum like every product: with an all-zero w they are all that there is
    to round.
    """

    def layer(product: Tensor, residual: Tensor | None) -> Tensor:
        y = activate(product, activation)
        return y if residual is None else y + residual

    wide = None if residual is None else residual.double()
    y = layer(functional.linear(x.double(), w.double(), None if bias is None else bias.double()), wide)
    if not y.numel():
        return Truth(y, 0.0)
    products = [functional.linear(x, w, bias)]
    if x.dtype in (torch.float32, torch.bfloat16):
        products.append(torch.ops.mkldnn._linear_pointwise(x, w, bias, "none", [], ""))
    error = max(float((layer(product, residual).double() - y).abs().max()) for product in products)
    size = x.double().abs() @ w.double().abs().T
    for term in (bias, residual):
        size = size if term is None else size + term.double().abs()
    return Truth(y, 2 * error + 2**-23 * float(size.max()))


def bits(t: Tensor) -> Tensor:
    """The tensor's bits as integers, so that NaN equals itself."""
    if not t.is_floating_point():
        return t
    return t.contiguous().view({2: torch.int16, 4: torch.int32, 8: torch.int64}[t.element_size()])
