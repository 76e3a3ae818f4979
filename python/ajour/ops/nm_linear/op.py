"""nm_linear: its format and its kernels, fastest first."""

from __future__ import annotations

from ajour.formats.nm import NMMatrix
from ajour.ops.dense import dense_kernels
from ajour.ops.library import define_linear
from ajour.ops.nm_linear import (
    cusparselt_kernel,
    decode_kernel,
    native_kernel,
    reference,
    sm80_kernel,
    sm90_kernel,
)
from ajour.ops.triton_door import triton_kernel

KERNELS = (
    decode_kernel.KERNEL,
    sm90_kernel.KERNEL,
    cusparselt_kernel.KERNEL,
    sm80_kernel.KERNEL,
    native_kernel.KERNEL,
    native_kernel.EXPANDED,
    triton_kernel("ajour.ops.nm_linear.triton_kernel", reference.KERNEL),
    *dense_kernels(NMMatrix),
    reference.KERNEL,
)

OP = define_linear("nm_linear", NMMatrix, KERNELS)
