"""SplitLinear: a linear layer with zeros anywhere, stored as a 2:4 part and a scattered rest."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from ajour.formats.matrix import SparseMatrix
from ajour.nn.linear import SparseLinear
from ajour.ops import SPLIT_LINEAR
from ajour.ops.library import LinearOp
from ajour.terms.errors import KernelError


class SplitLinear(SparseLinear):
    """Holds a SplitMatrix, calls `ajour::split_linear`; state: values, positions, bitmaps, offsets, bias.

    For inference: its 2:4 part fills groups up with explicit zeros, which training would make non-zeros.
    """

    op: ClassVar[LinearOp] = SPLIT_LINEAR

    def _check(self, matrix: SparseMatrix, bias: Tensor | None, activation: str, trainable: bool) -> None:
        super()._check(matrix, bias, activation, trainable)
        if trainable:
            raise KernelError(
                "SplitLinear is for inference: training would fill zeros of the weight that its 2:4 part stores; "
                "train a BitmapLinear"
            )
