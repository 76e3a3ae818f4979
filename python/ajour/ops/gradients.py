"""Gradients: which formula is whose gradient, outside the ops, used only where a gradient is needed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear as dense

from ajour.ops import block_gradients
from ajour.ops.bitmap_linear import reference as bitmap_reference
from ajour.ops.block_linear import reference as block_reference
from ajour.ops.dense import apply_activation
from ajour.ops.library import LinearOp
from ajour.ops.nm_linear import reference as nm_reference
from ajour.ops.scaled_nm_linear import reference as scaled_nm_reference
from ajour.ops.split_linear import reference as split_reference
from ajour.ops.watchers import is_transformed
from ajour.terms.errors import KernelError
from ajour.terms.kernel import Kernel
from ajour.terms.problem import Problem
from ajour.terms.row_table import RowEntry, RowTable, parse_row_table

# op -> (canonical tensors, pattern, shape) -> dense weight, differentiable in the first tensor
EXPAND: dict[str, Callable[[Sequence[Tensor], Any, tuple[int, int]], Tensor]] = {
    "nm_linear": nm_reference.expand,
    "block_linear": block_reference.expand,
    "bitmap_linear": bitmap_reference.expand,
    "split_linear": split_reference.expand,
    "dense_linear": lambda tensors, pattern, shape: tensors[0],
    "scaled_nm_linear": scaled_nm_reference.expand,
}
# op -> (gradient of the dense weight, canonical tensors, pattern) -> gradient of the first tensor
COLLECT: dict[str, Callable[[Tensor, Sequence[Tensor], Any], Tensor]] = {
    "nm_linear": nm_reference.collect,
    "bitmap_linear": bitmap_reference.collect,
    "split_linear": split_reference.collect,
    "dense_linear": lambda dw, tensors, pattern: dw,
}
# ops with products of their own for dx and for the gradient of the values (block_gradients.py)
INPUT_GRADIENT = {"block_linear": block_gradients.input_gradient}
VALUE_GRADIENT = {"block_linear": block_gradients.value_gradient}
# and what their kernels have to say of the three products: configurations, refusals, a check of the part for dw
_TRAINING_CONFIGS = {"block_linear": block_gradients.training_configs}
_WHY_NOT_TRAINED = {"block_linear": block_gradients.why_not_trained}
CHECK_DW = {"block_linear": block_gradients.check_dw}
# packings that hold the values in the order of EXPAND and COLLECT
_TRAINABLE = {"dense_linear": "dense"}


def training_configs(op: LinearOp, kernel: Kernel, problem: Problem) -> tuple[tuple[str, ...], ...]:
    """The configurations worth timing for y, dx and dw of a layer that is trained, the likely best of each first."""
    configs = _TRAINING_CONFIGS.get(op.name)
    return configs(kernel, problem) if configs else (kernel.configs(problem), ("",), ("",))


def why_not_trained(op: LinearOp, kernel: Kernel, problem: Problem) -> str | None:
    """None if the kernel can train a layer of the op, else the reason in one sentence."""
    why_not = _WHY_NOT_TRAINED.get(op.name)
    return why_not(kernel, problem) if why_not else kernel.why_not(problem)


def _table(kernels: str) -> RowTable:
    """The parsed table, which torch.compile takes as it is instead of tracing the parser."""
    return parse_row_table(kernels)


# what torch.compiler.assume_constant_result does, without importing torch._dynamo (1.5 s)
_table._dynamo_marked_constant = True  # type: ignore[attr-defined]


class _Linear(torch.autograd.Function):
    """y = x @ w.T + bias, with dx = dy @ w, dbias = the sum of dy and dvalues = dy.T @ x at the stored places.

    A skipped place has weight zero in dx as well, so dx is that of the dense layer, Inf and NaN in dy included.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, op: LinearOp, kernels: str, x: Tensor, bias: Tensor | None, *packed: Tensor
    ) -> Tensor:
        ctx.op, ctx.kernels, ctx.dtype = op, kernels, x.dtype
        read = x if True in ctx.needs_input_grad[4:] else None  # else whoever made x may change it afterwards
        ctx.save_for_backward(read, *packed)
        return op.call(x, list(packed), bias, kernels, "none", None)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, *packed = ctx.saved_tensors
        _, _, needs_x, needs_bias, *needs_packed = ctx.needs_input_grad
        op, kernels = ctx.op, ctx.kernels
        dx = dbias = None
        dpacked: list[Tensor | None] = [None] * len(packed)
        dy = dy.to(getattr(torch, _table(kernels).dtype))  # autocast may have rounded y
        if needs_x:
            dx = input_gradient(op, kernels, dy, packed).to(ctx.dtype)
        if needs_bias:
            dbias = dy.reshape(-1, dy.shape[-1]).sum(0)
        if True in needs_packed:  # the values alone can need one
            dpacked[needs_packed.index(True)] = value_gradient(op, kernels, dy, x.to(dy.dtype), packed)
        return None, None, dx, dbias, *dpacked


def input_gradient(op: LinearOp, kernels: str, dy: Tensor, packed: list[Tensor]) -> Tensor:
    """dx: [..., k] = dy: [..., n] @ w."""
    if op.name in INPUT_GRADIENT and not is_transformed(dy):
        return INPUT_GRADIENT[op.name](kernels, dy, packed)
    return dy @ _weight(op, packed, kernels)


def value_gradient(op: LinearOp, kernels: str, dy: Tensor, x: Tensor, packed: list[Tensor]) -> Tensor:
    """dy.T @ x at the stored places, in the order of the canonical values, which the row table must read."""
    if op.name in VALUE_GRADIENT:
        if is_transformed(dy):  # a kernel would drop the tangent of dy without a word
            raise KernelError(
                f"{op.name}: no gradient of its values under a transform, forward mode or is_grads_batched, for a y "
                "made outside of it; call the layer inside of it"
            )
        return VALUE_GRADIENT[op.name](kernels, dy, x, packed)
    table = _table(kernels)
    entry = _trainable(op, table)
    assert entry is not None
    dw = dy.reshape(-1, table.n).T @ x.reshape(-1, table.k)
    return COLLECT[op.name](dw, packed[entry.start : entry.stop], table.pattern)


def _trainable(op: LinearOp, table: RowTable) -> RowEntry | None:
    """The entry that reads the canonical form, if there is one."""
    packing = _TRAINABLE.get(op.name, "canonical")
    return next((entry for entry in table.entries if op.kernel(entry.kernel).packing == packing), None)


def _weight(op: LinearOp, packed: list[Tensor], kernels: str) -> Tensor:
    """The dense weight: differentiable in the values where they are in canonical form."""
    table = _table(kernels)
    entry = _trainable(op, table)
    if entry is not None:
        return EXPAND[op.name](packed[entry.start : entry.stop], table.pattern, (table.n, table.k))
    for other in table.entries:
        if op.kernel(other.kernel).packing == "dense":
            return packed[other.start]
    return op.weight(packed, kernels)


def _check_trainable(op: LinearOp, packed: list[Tensor], kernels: str) -> None:
    entry = _trainable(op, _table(kernels))
    for place, tensor in enumerate(packed):
        if tensor.requires_grad and (entry is None or place != entry.start):
            raise KernelError(
                f"{op.name}: packed tensor {place} requires a gradient, but only values in their canonical form can be "
                f"trained, through a kernel that reads it (reference does); the row table is {kernels!r}"
            )


def linear(
    op: LinearOp,
    x: Tensor,
    packed: list[Tensor],
    bias: Tensor | None,
    kernels: str,
    activation: str = "none",
    residual: Tensor | None = None,
) -> Tensor:
    """The op with gradients for x, bias, residual and (in canonical form) values; the bare op where none is needed.

    Raises KernelError as the op does, and for values that require a gradient in a form that can't be trained.
    """
    if not torch.is_grad_enabled():
        return op.call(x, packed, bias, kernels, activation, residual)
    trained = False
    for tensor in packed:  # 0.2 µs less than any() of a generator (Zen 5)
        trained = trained or tensor.requires_grad
    if not (
        trained
        or x.requires_grad
        or (bias is not None and bias.requires_grad)
        or (residual is not None and residual.requires_grad)
    ):
        return op.call(x, packed, bias, kernels, activation, residual)
    if trained:
        _check_trainable(op, packed, kernels)
    if is_transformed(x):
        y = apply_activation(dense(x, _weight(op, packed, kernels), bias), activation)
        return y if residual is None else y + residual
    product: Tensor = _Linear.apply(op, kernels, x, bias, *packed)  # type: ignore[no-untyped-call]
    y = apply_activation(product, activation)
    return y if residual is None else y + residual.to(y.dtype)
