"""DenseLinear: a layer that stays dense, on a better dense kernel than the one that torch would take."""

from __future__ import annotations

from typing import ClassVar

from ajour.nn.linear import SparseLinear
from ajour.ops import DENSE_LINEAR
from ajour.ops.library import LinearOp


class DenseLinear(SparseLinear):
    """Holds a DenseMatrix, calls `ajour::dense_linear`; state: weight, bias, as in nn.Linear. Frozen only."""

    op: ClassVar[LinearOp] = DENSE_LINEAR
