"""dense_linear: a layer that stays dense, on the better of torch's dense kernels."""

from __future__ import annotations

from ajour.formats.dense import DenseMatrix
from ajour.ops.dense import dense_kernels
from ajour.ops.library import define_linear

KERNELS = dense_kernels(DenseMatrix)

OP = define_linear("dense_linear", DenseMatrix, KERNELS)
