"""DenseMatrix: a weight as it is, for layers that stay dense but may run on a better dense kernel."""

from __future__ import annotations

from torch import Tensor

from ajour.formats.matrix import DTYPES, SparseMatrix
from ajour.terms.errors import FormatError, PatternError
from ajour.terms.pattern import Dense, Pattern


class DenseMatrix(SparseMatrix):
    """weight: [n, k]."""

    NAMES = ("weight",)

    @classmethod
    def from_dense(cls, w: Tensor, pattern: Pattern = Dense()) -> DenseMatrix:  # noqa: B008
        if not isinstance(pattern, Dense) or w.dim() != 2 or w.dtype not in DTYPES:
            raise PatternError(f"DenseMatrix holds a 2-D weight as dense, found {tuple(w.shape)} {w.dtype} as {pattern}")
        return cls({"weight": w}, pattern, (w.shape[0], w.shape[1]))

    def to_dense(self) -> Tensor:
        return self.values.clone()

    def validate(self) -> None:
        if tuple(self.values.shape) != self.shape:
            raise FormatError(f"weight: expected shape {self.shape}, found {tuple(self.values.shape)}")
