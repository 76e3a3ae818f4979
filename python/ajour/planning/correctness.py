"""No time without a right answer: a candidate's output against dense in float64."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import linear

MULTIPLICATIONS = 3e8  # in float64 for one check; beyond, rows are sampled
DOUBT = 4.0  # a sampled error of up to so many times the bound is settled by all rows


@dataclass(frozen=True)
class Oracle:
    """What x: [m, k] @ w: [n, k].T + bias: [n] must give; compares `rows` of it with float64.

    dense: torch's own answer in x's dtype, all rows.
    """

    x: Tensor
    w: Tensor
    bias: Tensor | None
    dense: Tensor
    rows: Tensor

    @classmethod
    def of(cls, x: Tensor, w: Tensor, bias: Tensor | None, multiplications: float = MULTIPLICATIONS) -> Oracle:
        """Compares all rows, or as many, spread evenly with first and last, as `multiplications` allow."""
        m, n, k = x.shape[0], *w.shape
        count = min(m, max(16, int(multiplications / max(1, n * k))))
        rows = torch.linspace(0, m - 1, count, dtype=torch.float64, device=x.device).long()
        return cls(x, w, bias, linear(x, w, bias), rows)

    @cached_property
    def exact(self) -> Tensor:
        """The answer [rows, n] in float64."""
        bias = None if self.bias is None else self.bias.double()
        return linear(self.x[self.rows].double(), self.w.double(), bias)

    @cached_property
    def bound(self) -> float:
        """2 * max|e_dense| + 2**-23 * max(|x| @ |w|.T), the largest error allowed."""
        size = self.x[self.rows].double().abs() @ self.w.double().abs().T
        return 2 * _error(self.dense[self.rows], self.exact) + 2.0**-23 * _largest(size)

    @cached_property
    def everywhere(self) -> Oracle:
        """The same for all rows."""
        return Oracle(self.x, self.w, self.bias, self.dense, torch.arange(self.x.shape[0], device=self.x.device))

    def error_ratio(self, y: Tensor) -> float:
        """max|e| / bound, at most 1 for a right answer; inf for NaN, Inf or a shape out of place.

        Rows that were not sampled are compared with torch's own dense, at twice the bound. As both errors of the rule
        are largest ones, a sample can be unlucky: where it is in doubt all rows decide.
        """
        if y.shape != self.dense.shape or y.dtype != self.dense.dtype:
            return float("inf")
        if not torch.equal(self.dense.isfinite(), y.isfinite()):
            return float("inf")
        error = max(_error(y[self.rows], self.exact), _largest((y - self.dense).abs()) / 2)
        ratio = error / self.bound if self.bound else (0.0 if error == 0 else float("inf"))
        if 1 < ratio <= DOUBT and len(self.rows) < len(y):
            return self.everywhere.error_ratio(y)
        return ratio


def _error(y: Tensor, exact: Tensor) -> float:
    return _largest((y.double() - exact).abs())


def _largest(values: Tensor) -> float:
    """The largest finite value: where the dense answer overflows there is nothing to compare."""
    finite = values[values.isfinite()]
    return float(finite.max()) if finite.numel() else 0.0
