"""block_linear: its format and its kernels, fastest first, and the product with the transposed weight."""

from __future__ import annotations

from dataclasses import replace

from ajour.formats.block import BlockMatrix
from ajour.ops.block_linear import blocks_kernel, native_kernel, reference, scheduled
from ajour.ops.dense import dense_kernels
from ajour.ops.library import define_linear
from ajour.ops.transposed import define_transposed
from ajour.ops.triton_door import triton_kernel

_TRITON = "ajour.ops.block_linear.triton_kernel"

KERNELS = (
    native_kernel.KERNEL,
    triton_kernel(_TRITON, scheduled.PACKING, transposed=True),
    *dense_kernels(BlockMatrix),
    blocks_kernel.KERNEL,
    replace(triton_kernel(_TRITON, reference.KERNEL, name="triton_blocks", transposed=True), planned=False),
    reference.KERNEL,
)

OP = define_linear("block_linear", BlockMatrix, KERNELS)
TRANSPOSED = define_transposed(OP)
