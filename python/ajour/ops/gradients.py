"""Gradients: which op or formula is whose gradient, outside the ops, used only where a gradient is needed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ajour.formats.matrix import SparseMatrix
from ajour.ops.bitmap_linear import reference as bitmap_reference
from ajour.ops.block_linear import reference as block_reference
from ajour.ops.dense import apply_activation
from ajour.ops.library import LinearOp
from ajour.ops.nm_linear import reference as nm_reference
from ajour.ops.prepare import restore
from ajour.terms.row_table import parse_row_table

# op -> (canonical tensors, pattern, shape) -> dense weight, differentiable in the first tensor
EXPAND: dict[str, Callable[[Sequence[Tensor], Any, tuple[int, int]], Tensor]] = {
    "nm_linear": nm_reference.expand,
    "block_linear": block_reference.expand,
    "bitmap_linear": bitmap_reference.expand,
    "dense_linear": lambda tensors, pattern, shape: tensors[0],
}


class _Linear(torch.autograd.Function):
    """y = x @ w.T + bias, with dx = dy @ w, dbias = the sum of dy and dvalues = dy.T @ x at the kept places."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, op: LinearOp, kernels: str, x: Tensor, bias: Tensor | None, *packed: Tensor
    ) -> Tensor:
        ctx.op, ctx.kernels = op, kernels
        ctx.save_for_backward(x, *packed)
        return op.call(x, list(packed), bias, kernels, "none", None)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, *packed = ctx.saved_tensors
        table = parse_row_table(ctx.kernels)
        needs_x, needs_bias, needs_values = ctx.needs_input_grad[2], ctx.needs_input_grad[3], any(ctx.needs_input_grad[4:])
        dx = dbias = None
        dpacked: list[Tensor | None] = [None] * len(packed)
        canonical = packed
        if table.entries[0].kernel != "reference":
            if needs_values:
                raise RuntimeError("values can only be trained in their canonical form, through the reference kernel")
            canonical = list(restore(ctx.op, packed, ctx.kernels).tensors().values())
        with torch.enable_grad():
            values = canonical[0].detach().requires_grad_(needs_values)
            w = EXPAND[ctx.op.name]([values, *canonical[1:]], table.pattern, (table.n, table.k))
        if needs_x:
            dx = dy @ w.detach()
        rows = dy.reshape(-1, table.n)
        if needs_bias:
            dbias = rows.sum(0)
        if needs_values:
            (dpacked[0],) = torch.autograd.grad(w, values, rows.T @ x.reshape(-1, table.k))
        return None, None, dx, dbias, *dpacked


def linear(
    op: LinearOp,
    x: Tensor,
    packed: list[Tensor],
    bias: Tensor | None,
    kernels: str,
    activation: str = "none",
    residual: Tensor | None = None,
) -> Tensor:
    """The op with gradients for x, bias, residual and (in canonical form) values; the bare op where none is needed."""
    if not torch.is_grad_enabled() or not (
        x.requires_grad
        or (bias is not None and bias.requires_grad)
        or (residual is not None and residual.requires_grad)
        or packed[0].requires_grad
    ):
        return op.call(x, packed, bias, kernels, activation, residual)
    y: Tensor = apply_activation(_Linear.apply(op, kernels, x, bias, *packed), activation)
    return y if residual is None else y + residual
