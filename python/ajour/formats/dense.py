"""DenseMatrix: a weight as it is, for layers that stay dense but may run on a better dense kernel."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ajour.formats.matrix import Sizes, SparseMatrix
from ajour.terms.pattern import Dense, Pattern


class DenseMatrix(SparseMatrix):
    """weight: [n, k], every bit as it was, -0.0 included."""

    NAMES = ("weight",)
    HOLDS = Dense

    @classmethod
    def from_dense(cls, w: Tensor, pattern: Pattern = Dense()) -> DenseMatrix:  # noqa: B008
        cls._check_weight(w, pattern)
        return cls({"weight": w}, pattern, (w.shape[0], w.shape[1]))._trusted()

    def to_dense(self) -> Tensor:
        return self.values.clone()

    def validate(self) -> None:
        self._check_sizes(self._tensors, self.pattern, self.shape)

    @classmethod
    def _sizes(cls, tensors: Mapping[str, Tensor], pattern: Pattern, shape: tuple[int, int]) -> Sizes:
        return {"weight": (None, (shape[0], shape[1]))}
