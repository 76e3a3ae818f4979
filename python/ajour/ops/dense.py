"""Dense kernels, a part of every op's table: a layer may be sparse for few rows and dense for many.

They multiply the zeros too, so Inf and NaN of x reach every output of their row, as in the unconverted layer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import gelu, linear, relu, silu

from ajour.formats.matrix import SparseMatrix
from ajour.terms.kernel import Kernel
from ajour.terms.pattern import Pattern
from ajour.terms.problem import Problem
from ajour.terms.row_table import RowEntry

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda y: y,
    "relu": relu,
    "gelu": gelu,
    "gelu_tanh": lambda y: gelu(y, approximate="tanh"),
    "silu": silu,
}
# (attribute, algorithm) of torch.ops.mkldnn._linear_pointwise; its own relu makes a number of NaN
_ONEDNN = {
    "none": ("none", ""),
    "relu": ("none", ""),
    "gelu": ("gelu", "none"),
    "gelu_tanh": ("gelu", "tanh"),
    "silu": ("swish", ""),
}


def apply_activation(y: Tensor, activation: str) -> Tensor:
    """activation(y) as torch computes it."""
    return _ACTIVATIONS[activation](y)


def masked_linear(
    x: Tensor, w: Tensor, stored: Callable[[], Tensor], bias: Tensor | None, residual: Tensor | None, activation: str
) -> Tensor:
    """activation(x @ w.T + bias) + residual over the stored() places of w alone; x: [m, k], y: [m, n].

    A zero in a dense product would turn Inf and NaN of x into NaN, so the rows of x that hold one are summed product by
    product. stored: () -> bool [n, k], asked for such rows alone, as finding it takes as long as finding w.
    """
    y = linear(x, w, bias)
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    infinite = (~torch.isfinite(x)).any(1).nonzero().flatten().tolist()
    places = stored() if infinite else w  # which nobody asks for then
    for row in infinite:
        products = torch.where(places, x[row].to(wide) * w.to(wide), 0.0)
        total = products.sum(1) if bias is None else products.sum(1) + bias
        y[row] = total.to(x.dtype)
    y = _ACTIVATIONS[activation](y)
    return y if residual is None else y + residual


def _run_aten(
    x: Tensor, packed: Sequence[Tensor], bias: Tensor | None, residual: Tensor | None, activation: str, entry: RowEntry
) -> Tensor:
    y = _ACTIVATIONS[activation](linear(x, packed[0], bias))
    return y if residual is None else y + residual


def _run_onednn(
    x: Tensor, packed: Sequence[Tensor], bias: Tensor | None, residual: Tensor | None, activation: str, entry: RowEntry
) -> Tensor:
    attribute, algorithm = _ONEDNN[activation]
    y: Tensor = torch.ops.mkldnn._linear_pointwise(x, packed[0], bias, attribute, [], algorithm)
    if activation == "relu":
        y = torch.relu_(y)
    return y if residual is None else y + residual


def _run_t(dy: Tensor, packed: Sequence[Tensor], entry: RowEntry) -> Tensor:
    return dy @ packed[0]


def _why_not_onednn(problem: Problem) -> str | None:
    if problem.device != "cpu":
        return f"oneDNN runs on the CPU, this layer is on {problem.device}"
    if problem.dtype not in ("float32", "bfloat16"):
        return f"oneDNN takes float32 and bfloat16, this layer is {problem.dtype}"
    if not torch.backends.mkldnn.is_available():
        return "this torch was built without oneDNN"
    return None


def dense_kernels(matrix: type[SparseMatrix]) -> tuple[Kernel, Kernel]:
    """`aten` (torch's own linear) and `onednn`, for matrices of that format; both read one dense weight [n, k]."""

    def prepack(held: SparseMatrix, config: str) -> list[Tensor]:
        return [held.to_dense()]

    def unpack(packed: Sequence[Any], pattern: Pattern, shape: tuple[int, int]) -> SparseMatrix:
        return matrix.from_dense(packed[0], pattern)

    return (
        Kernel("onednn", "dense", _why_not_onednn, prepack, unpack, _run_onednn, run_t=_run_t),
        Kernel("aten", "dense", lambda problem: None, prepack, unpack, _run_aten, run_t=_run_t),
    )
