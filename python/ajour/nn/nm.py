"""NMLinear: a linear layer whose weight keeps `keep` of every `group` neighbours."""

from __future__ import annotations

from typing import ClassVar

from ajour.nn.linear import SparseLinear
from ajour.ops import NM_LINEAR
from ajour.ops.library import LinearOp


class NMLinear(SparseLinear):
    """Holds an NMMatrix, calls `ajour::nm_linear`; state: values, positions, bias."""

    op: ClassVar[LinearOp] = NM_LINEAR
