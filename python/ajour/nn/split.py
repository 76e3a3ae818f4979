"""SplitLinear: a linear layer with zeros anywhere, stored as a 2:4 part and a scattered rest."""

from __future__ import annotations

from typing import ClassVar

from ajour.nn.linear import SparseLinear
from ajour.ops import SPLIT_LINEAR
from ajour.ops.library import LinearOp


class SplitLinear(SparseLinear):
    """Holds a SplitMatrix, calls `ajour::split_linear`; state: values, positions, bitmaps, offsets, bias."""

    op: ClassVar[LinearOp] = SPLIT_LINEAR
