"""linear: the functional form of every sparse linear op."""

from __future__ import annotations

import torch
from torch import Tensor

from ajour.formats.matrix import SparseMatrix
from ajour.ops import LINEAR_OPS
from ajour.ops.gradients import linear as call
from ajour.ops.library import LinearOp
from ajour.ops.prepare import prepare
from ajour.terms.errors import KernelError
from ajour.terms.problem import Problem


def op_of(matrix: SparseMatrix) -> LinearOp:
    """The op that reads matrices of this format."""
    for op in LINEAR_OPS.values():
        if op.matrix is type(matrix):
            return op
    raise KernelError(f"no op reads a {type(matrix).__name__}; expected one of {', '.join(LINEAR_OPS)}")


def problem_of(matrix: SparseMatrix, m: int, activation: str = "none") -> Problem:
    """The problem that m rows of x pose to a kernel."""
    device = matrix.device.type
    capability = torch.cuda.get_device_capability(matrix.device) if device == "cuda" else None
    n, k = matrix.shape
    dtype = str(matrix.dtype).removeprefix("torch.")
    return Problem(op_of(matrix).name, matrix.pattern, m, n, k, dtype, device, capability, matrix.density, activation)


def linear(
    x: Tensor,
    matrix: SparseMatrix,
    bias: Tensor | None = None,
    *,
    activation: str = "none",
    residual: Tensor | None = None,
    kernel: str | None = None,
) -> Tensor:
    """y: [..., n] = activation(x: [..., k] @ matrix.T + bias: [n]) + residual: [..., n].

    `kernel=None` takes the first kernel of the op's table that takes the problem. The packed form is remembered on the
    matrix. Products that the format skips don't contribute, even where x is Inf or NaN; explicit zeros that it stores
    (inside a live block, or filling an N:M group) do. Raises KernelError if no kernel, or not the named one, takes it.
    """
    op = op_of(matrix)
    problem = problem_of(matrix, x.numel() // max(1, x.shape[-1]) if x.dim() else 0, activation)
    if kernel is None:
        chosen = op.first(problem)
    else:
        chosen = op.kernel(kernel)
        if reason := chosen.why_not(problem):
            raise KernelError(f"{op.name}: kernel {kernel!r} does not take this problem: {reason}")
    key = (chosen.name, "")
    if key not in matrix.prepared:
        matrix.validated()
        matrix.prepared[key] = prepare(op, matrix, [(None, chosen.name, chosen.configs(problem)[0])])
    packed, kernels = matrix.prepared[key]
    return call(op, x, packed, bias, kernels, activation, residual)
