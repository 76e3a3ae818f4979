"""split_linear: its format and its kernels, fastest first."""

from __future__ import annotations

from ajour.formats.split import SplitMatrix
from ajour.ops.dense import dense_kernels
from ajour.ops.library import define_linear
from ajour.ops.split_linear import native_kernel, reference

KERNELS = (native_kernel.KERNEL, *dense_kernels(SplitMatrix), reference.KERNEL)

OP = define_linear("split_linear", SplitMatrix, KERNELS)
