"""block_linear: its format and its kernels, fastest first."""

from __future__ import annotations

from ajour.formats.block import BlockMatrix
from ajour.ops.dense import dense_kernels
from ajour.ops.block_linear import reference
from ajour.ops.library import define_linear

KERNELS = (*dense_kernels(BlockMatrix), reference.KERNEL)

OP = define_linear("block_linear", BlockMatrix, KERNELS)
