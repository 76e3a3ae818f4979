"""bitmap_linear: its format and its kernels, fastest first."""

from __future__ import annotations

from ajour.formats.bitmap import BitmapMatrix
from ajour.ops.bitmap_linear import chunked_kernel, decode_kernel, gap_kernel, native_kernel, reference
from ajour.ops.dense import dense_kernels
from ajour.ops.library import define_linear
from ajour.ops.triton_door import triton_kernel

KERNELS = (
    gap_kernel.KERNEL,
    decode_kernel.KERNEL,
    native_kernel.KERNEL,
    chunked_kernel.KERNEL,
    native_kernel.UNPACK_KERNEL,
    triton_kernel("ajour.ops.bitmap_linear.triton_kernel", reference.KERNEL),
    *dense_kernels(BitmapMatrix),
    reference.KERNEL,
)

OP = define_linear("bitmap_linear", BitmapMatrix, KERNELS)
