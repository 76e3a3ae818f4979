"""From a matrix to the module that holds its format."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ajour.formats.matrix import SparseMatrix
from ajour.nn.bitmap import BitmapLinear
from ajour.nn.block import BlockLinear
from ajour.nn.dense import DenseLinear
from ajour.nn.linear import SparseLinear
from ajour.nn.nm import NMLinear
from ajour.nn.scaled_nm import ScaledNMLinear
from ajour.nn.split import SplitLinear
from ajour.ops.prepare import Choice
from ajour.terms.errors import KernelError

MODULES: dict[str, type[SparseLinear]] = {
    module.op.name: module for module in (NMLinear, BlockLinear, BitmapLinear, SplitLinear, DenseLinear, ScaledNMLinear)
}


def linear_of(
    matrix: SparseMatrix,
    bias: Tensor | None = None,
    *,
    choices: Sequence[Choice] | None = None,
    activation: str = "none",
    trainable: bool = False,
) -> SparseLinear:
    """The module for matrix: [n, k] of whatever format and bias: [n]; arguments and errors are SparseLinear's."""
    for module in MODULES.values():
        if module.op.matrix is type(matrix):
            return module(matrix, bias, choices=choices, activation=activation, trainable=trainable)
    raise KernelError(f"no module holds a {type(matrix).__name__}; expected a matrix of {', '.join(MODULES)}")
