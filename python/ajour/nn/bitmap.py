"""BitmapLinear: a linear layer with zeros anywhere."""

from __future__ import annotations

from typing import ClassVar

from ajour.nn.linear import SparseLinear
from ajour.ops import BITMAP_LINEAR
from ajour.ops.library import LinearOp


class BitmapLinear(SparseLinear):
    """Holds a BitmapMatrix, calls `ajour::bitmap_linear`; state: values, bitmaps, offsets, bias."""

    op: ClassVar[LinearOp] = BITMAP_LINEAR
