"""Gradients of block_linear in proportion to its blocks: forward, dx and dW are each other's gradients.

With y = x @ w.T, dx = dy @ w and dw = dy.T @ x at the live blocks, each of the three is linear in its two arguments,
and what it passes back is again a product of these three kinds: derivatives of any order need nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ajour.ops import BLOCK_LINEAR, BLOCK_SDDMM
from ajour.ops.block_linear.op import TRANSPOSED
from ajour.terms.errors import KernelError
from ajour.terms.kernel import PRODUCTS, Kernel, SampledKernel, config_of
from ajour.terms.pattern import Block
from ajour.terms.problem import Problem
from ajour.terms.row_table import make_row_table, parse_row_table

INDICES = 5  # tensors of a BlockMatrix behind its blocks


@cache
def _found(kernels: str) -> tuple[int, str]:
    table = parse_row_table(kernels)
    entries = [entry for entry in table.entries if BLOCK_LINEAR.kernel(entry.kernel).packing == "canonical"]
    if not entries:
        raise KernelError(
            f"block_linear: no kernel of {kernels!r} reads the canonical form, which alone can be trained"
        )
    limits = [*(entry.limit for entry in entries[:-1]), None]
    rows = [
        (limit, _sampled_kernel(entry.kernel).name, 0, INDICES, config_of(entry.config, "dw"))
        for limit, entry in zip(limits, entries, strict=True)
    ]
    return entries[0].start, str(make_row_table(table.n, table.k, table.dtype, table.pattern, rows))


def _sampled_kernel(name: str) -> SampledKernel:
    """What computes dw of a layer that the kernel of that name runs."""
    return BLOCK_SDDMM.kernels.get(name, BLOCK_SDDMM.kernels["reference"])


def sampled_table(kernels: str) -> tuple[int, str]:
    """Where the canonical tensors begin that a row table reads, and the table of block_sddmm for them."""
    return _found(kernels)


# what torch.compiler.assume_constant_result does, without importing torch._dynamo (1.5 s)
sampled_table._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _sampled(kernels: str, dy: Tensor, x: Tensor, packed: Sequence[Tensor]) -> Tensor:
    start, table = sampled_table(kernels)
    return BLOCK_SDDMM.call(dy, x, list(packed[start + 1 : start + 1 + INDICES]), table)


def training_configs(kernel: Kernel, problem: Problem) -> tuple[tuple[str, ...], ...]:
    """The configurations worth timing for y, dx and dw of a layer that is trained, the likely best of each first.

    dx is the forward of the turned weight, so its configurations are those for that weight.
    """
    return kernel.configs(problem), kernel.configs(_turned(problem)), _sampled_kernel(kernel.name).configs(problem)


def why_not_trained(kernel: Kernel, problem: Problem) -> str | None:
    """None if a layer can be trained by the kernel, else which of its products refuses that, in one sentence."""
    return kernel.why_not(problem) or kernel.why_not(_turned(problem)) or _sampled_kernel(kernel.name).why_not(problem)


def check_dw(kernel: Kernel, problem: Problem, config: str) -> None:
    """Raises KernelError for a configuration whose part for dw, if it has one, is none that runs there."""
    if len(config.split(" / ")) > len(PRODUCTS):
        raise KernelError(f"{config!r} has more parts than a layer has products: {' / '.join(PRODUCTS)}")
    part, sampled = config_of(config, "dw"), _sampled_kernel(kernel.name)
    if part and sampled.check is None:
        raise KernelError(f"{config!r} has a part for dw, and {sampled.name!r}, which computes it, has no choices")
    if part and sampled.check is not None:
        sampled.check(problem, part)


def _turned(problem: Problem) -> Problem:
    """The problem that the transposed weight poses."""
    assert isinstance(problem.pattern, Block)
    return replace(
        problem, pattern=Block(problem.pattern.cols, problem.pattern.rows), n=problem.k, k=problem.n, activation="none"
    )


class _Forward(torch.autograd.Function):
    """x @ w.T"""

    @staticmethod
    def forward(ctx: Any, kernels: str, x: Tensor, *packed: Tensor) -> Tensor:  # type: ignore[override]
        ctx.kernels = kernels
        ctx.save_for_backward(x, *packed)
        return BLOCK_LINEAR.call(x, list(packed), None, kernels, "none", None)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, *packed = ctx.saved_tensors
        dx = input_gradient(ctx.kernels, dy, packed) if ctx.needs_input_grad[1] else None
        return None, dx, *_at(ctx.kernels, packed, ctx.needs_input_grad[2:], dy, x)


class _Transposed(torch.autograd.Function):
    """dy @ w"""

    @staticmethod
    def forward(ctx: Any, kernels: str, dy: Tensor, *packed: Tensor) -> Tensor:  # type: ignore[override]
        ctx.kernels = kernels
        ctx.save_for_backward(dy, *packed)
        return TRANSPOSED(dy, list(packed), kernels)

    @staticmethod
    def backward(ctx: Any, ddx: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        dy, *packed = ctx.saved_tensors
        ddy = _Forward.apply(ctx.kernels, ddx, *packed) if ctx.needs_input_grad[1] else None  # type: ignore[no-untyped-call]
        return None, ddy, *_at(ctx.kernels, packed, ctx.needs_input_grad[2:], dy, ddx)


class _Sampled(torch.autograd.Function):
    """dy.T @ x at the live blocks"""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, kernels: str, dy: Tensor, x: Tensor, *packed: Tensor
    ) -> Tensor:
        ctx.kernels = kernels
        ctx.save_for_backward(dy, x, *packed)
        return _sampled(kernels, dy, x, packed)

    @staticmethod
    def backward(ctx: Any, dblocks: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        dy, x, *packed = ctx.saved_tensors
        start, _ = sampled_table(ctx.kernels)
        held = [*packed[:start], dblocks, *packed[start + 1 :]]  # a gradient of the blocks is a matrix of their places
        ddy = _Forward.apply(ctx.kernels, x, *held) if ctx.needs_input_grad[1] else None  # type: ignore[no-untyped-call]
        ddx = input_gradient(ctx.kernels, dy, held) if ctx.needs_input_grad[2] else None
        return None, ddy, ddx, *([None] * len(packed))


def _at(kernels: str, packed: list[Tensor], needs: Any, dy: Tensor, x: Tensor) -> list[Tensor | None]:
    """Gradients of the packed tensors: of the blocks, where they need one."""
    found: list[Tensor | None] = [None] * len(packed)
    if any(needs):
        found[sampled_table(kernels)[0]] = value_gradient(kernels, dy, x, packed)
    return found


def input_gradient(kernels: str, dy: Tensor, packed: list[Tensor]) -> Tensor:
    """dx: [..., k] = dy: [..., n] @ w, for packed tensors and a row table of block_linear."""
    if not torch.is_grad_enabled():  # no derivative of it is wanted: 5 us less (Zen 5, torch 2.13)
        return TRANSPOSED(dy, packed, kernels)
    dx: Tensor = _Transposed.apply(kernels, dy, *packed)  # type: ignore[no-untyped-call]
    return dx


def value_gradient(kernels: str, dy: Tensor, x: Tensor, packed: list[Tensor]) -> Tensor:
    """The gradient of the blocks, dy.T @ x where they are; the row table must read the canonical form."""
    if not torch.is_grad_enabled():
        return _sampled(kernels, dy, x, packed)
    detached = [tensor.detach() for tensor in packed]
    dw: Tensor = _Sampled.apply(kernels, dy, x, *detached)  # type: ignore[no-untyped-call]
    return dw
