"""block_sddmm: its kernels, fastest first, each named after the block_linear kernel whose training it serves."""

from __future__ import annotations

from ajour.ops.block_sddmm import native_kernel, reference, triton_configs
from ajour.ops.sampled import define_sampled
from ajour.ops.triton_door import triton_sampled

KERNELS = (
    native_kernel.KERNEL,
    triton_sampled("ajour.ops.block_sddmm.triton_kernel", "triton_blocks", triton_configs.check),
    reference.KERNEL,
)

OP = define_sampled("block_sddmm", KERNELS)
