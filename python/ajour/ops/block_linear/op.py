"""block_linear: its format and its kernels, fastest first."""

from __future__ import annotations

from ajour.formats.block import BlockMatrix
from ajour.ops.block_linear import native_kernel, reference
from ajour.ops.dense import dense_kernels
from ajour.ops.library import define_linear
from ajour.ops.triton_door import triton_kernel

KERNELS = (
    native_kernel.KERNEL,
    triton_kernel("ajour.ops.block_linear.triton_kernel", reference.KERNEL),
    *dense_kernels(BlockMatrix),
    reference.KERNEL,
)

OP = define_linear("block_linear", BlockMatrix, KERNELS)
