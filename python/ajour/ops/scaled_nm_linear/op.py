"""scaled_nm_linear: its format and its kernels, fastest first."""

from __future__ import annotations

from ajour.formats.scaled_nm import ScaledNMMatrix
from ajour.ops.library import define_linear
from ajour.ops.nm_linear import native_kernel
from ajour.ops.scaled_nm_linear import reference, sm90_kernel
from ajour.ops.scaled_nm_linear.dequantized import dequantized
from ajour.ops.triton_door import triton_kernel

KERNELS = (
    sm90_kernel.KERNEL,
    triton_kernel("ajour.ops.scaled_nm_linear.triton_kernel", reference.KERNEL),
    dequantized(native_kernel.KERNEL),
    dequantized(native_kernel.EXPANDED),
    reference.KERNEL,
)

OP = define_linear("scaled_nm_linear", ScaledNMMatrix, KERNELS)
