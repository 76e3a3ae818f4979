"""Ops: what is computed."""

from ajour.ops.bitmap_linear.op import OP as BITMAP_LINEAR
from ajour.ops.block_linear.op import OP as BLOCK_LINEAR
from ajour.ops.block_sddmm.op import OP as BLOCK_SDDMM
from ajour.ops.dense_linear.op import OP as DENSE_LINEAR
from ajour.ops.nm_linear.op import OP as NM_LINEAR
from ajour.ops.scaled_nm_linear.op import OP as SCALED_NM_LINEAR
from ajour.ops.split_linear.op import OP as SPLIT_LINEAR

LINEAR_OPS = {
    op.name: op for op in (NM_LINEAR, BLOCK_LINEAR, BITMAP_LINEAR, SPLIT_LINEAR, DENSE_LINEAR, SCALED_NM_LINEAR)
}

__all__ = [
    "BITMAP_LINEAR", "BLOCK_LINEAR", "BLOCK_SDDMM", "DENSE_LINEAR", "LINEAR_OPS", "NM_LINEAR", "SCALED_NM_LINEAR",
    "SPLIT_LINEAR",
]  # fmt: skip
