"""bitmap_linear: its format and its kernels, fastest first."""

from __future__ import annotations

from ajour.formats.bitmap import BitmapMatrix
from ajour.ops.dense import dense_kernels
from ajour.ops.bitmap_linear import reference
from ajour.ops.library import define_linear

KERNELS = (*dense_kernels(BitmapMatrix), reference.KERNEL)

OP = define_linear("bitmap_linear", BitmapMatrix, KERNELS)
