"""block_linear: its format and its kernels, fastest first, and the product with the transposed weight."""

from __future__ import annotations

from dataclasses import replace

from ajour.formats.block import BlockMatrix
from ajour.ops.block_linear import blocks_kernel, native_kernel, reference, scheduled, triton_configs
from ajour.ops.dense import dense_kernels
from ajour.ops.library import define_linear
from ajour.ops.transposed import define_transposed
from ajour.ops.triton_door import triton_kernel
from ajour.terms.kernel import Kernel


def _triton(canonical: Kernel, name: str) -> Kernel:
    module = "ajour.ops.block_linear.triton_kernel"
    return triton_kernel(module, canonical, name=name, check=triton_configs.check, transposed=True)


KERNELS = (
    native_kernel.KERNEL,
    _triton(scheduled.PACKING, "triton"),
    *dense_kernels(BlockMatrix),
    blocks_kernel.KERNEL,
    replace(_triton(reference.KERNEL, "triton_blocks"), planned=False),
    reference.KERNEL,
)

OP = define_linear("block_linear", BlockMatrix, KERNELS)
TRANSPOSED = define_transposed(OP)
