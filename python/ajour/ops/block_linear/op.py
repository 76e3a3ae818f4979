"""block_linear: its format and its kernels, fastest first, and the product with the transposed weight."""

from __future__ import annotations

from ajour.formats.block import BlockMatrix
from ajour.ops.block_linear import blocks_kernel, native_kernel, reference
from ajour.ops.dense import dense_kernels
from ajour.ops.library import define_linear
from ajour.ops.transposed import define_transposed
from ajour.ops.triton_door import triton_kernel

KERNELS = (
    native_kernel.KERNEL,
    triton_kernel("ajour.ops.block_linear.triton_kernel", reference.KERNEL),
    *dense_kernels(BlockMatrix),
    blocks_kernel.KERNEL,
    reference.KERNEL,
)

OP = define_linear("block_linear", BlockMatrix, KERNELS)
TRANSPOSED = define_transposed(OP)
