"""ScaledNMLinear: a linear layer in e4m3 whose weight keeps 2 of every 4 neighbours."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from ajour.formats.matrix import SparseMatrix
from ajour.nn.linear import SparseLinear
from ajour.ops import SCALED_NM_LINEAR
from ajour.ops.library import LinearOp
from ajour.terms.errors import KernelError


class ScaledNMLinear(SparseLinear):
    """Holds a ScaledNMMatrix, calls `ajour::scaled_nm_linear`; state: values, positions, scales, bias.

    x is rounded to e4m3 row by row in every call; its gradient is that of the layer without this rounding.
    """

    op: ClassVar[LinearOp] = SCALED_NM_LINEAR

    def _check(self, matrix: SparseMatrix, bias: Tensor | None, activation: str, trainable: bool) -> None:
        super()._check(matrix, bias, activation, trainable)
        if trainable:
            raise KernelError("ScaledNMLinear is for inference, e4m3 is too coarse to be trained; train, then quantize")
