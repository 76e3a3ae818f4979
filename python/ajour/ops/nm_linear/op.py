"""nm_linear: its format and its kernels, fastest first."""

from __future__ import annotations

from ajour.formats.nm import NMMatrix
from ajour.ops.dense import dense_kernels
from ajour.ops.nm_linear import reference
from ajour.ops.library import define_linear

KERNELS = (*dense_kernels(NMMatrix), reference.KERNEL)

OP = define_linear("nm_linear", NMMatrix, KERNELS)
