"""masked_adamw and masked_sgd: the optimizers' arithmetic, with its kernels, the preferred ones first."""

from __future__ import annotations

from ajour.ops.masked_update import cuda_kernel, native_kernel, reference, triton_record
from ajour.ops.masked_update.update import UpdateOp

KERNELS = (native_kernel.KERNEL, cuda_kernel.KERNEL, triton_record.KERNEL, reference.KERNEL)
MASKED_ADAMW = UpdateOp("masked_adamw", {kernel.name: kernel for kernel in KERNELS})
MASKED_SGD = UpdateOp("masked_sgd", {kernel.name: kernel for kernel in KERNELS})
