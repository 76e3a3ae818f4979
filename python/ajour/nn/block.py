"""BlockLinear: a linear layer whose weight has dead blocks."""

from __future__ import annotations

from typing import ClassVar

from ajour.nn.linear import SparseLinear
from ajour.ops import BLOCK_LINEAR
from ajour.ops.library import LinearOp


class BlockLinear(SparseLinear):
    """Holds a BlockMatrix, calls `ajour::block_linear`; state: blocks, its five indices, bias."""

    op: ClassVar[LinearOp] = BLOCK_LINEAR
