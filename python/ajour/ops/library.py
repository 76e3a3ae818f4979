"""The one place that speaks torch.library: defines an op from its KERNELS table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ajour.formats.matrix import SparseMatrix
from ajour.terms.errors import KernelError
from ajour.terms.kernel import Kernel
from ajour.terms.problem import ACTIVATIONS, Problem
from ajour.terms.row_table import RowTable, parse_row_table

# define + impl costs 2.7 µs a call where custom_op costs 4.3 (Zen 5, torch 2.13)
LIBRARY = torch.library.Library("ajour", "DEF")

SCHEMA = "(Tensor x, Tensor[] packed, Tensor? bias, str kernels, str activation, Tensor? residual=None) -> Tensor"


@dataclass(frozen=True)
class LinearOp:
    """An op y: [..., n] = activation(x: [..., k] @ w.T + bias: [n]) + residual, its format and its kernels by name."""

    name: str
    matrix: type[SparseMatrix]
    kernels: dict[str, Kernel]

    def kernel(self, name: str) -> Kernel:
        """The kernel of that name; raises KernelError."""
        if name not in self.kernels:
            raise KernelError(f"{self.name} has no kernel {name!r}; it has {', '.join(self.kernels)}")
        return self.kernels[name]

    def first(self, problem: Problem) -> Kernel:
        """The first kernel of the table that takes the problem; raises KernelError with every refusal."""
        refusals = []
        for kernel in self.kernels.values():
            reason = kernel.why_not(problem)
            if reason is None:
                return kernel
            refusals.append(f"{kernel.name}: {reason}")
        raise KernelError(f"{self.name} has no kernel for {problem}; " + "; ".join(refusals))

    @property
    def call(self) -> torch._ops.OpOverload:
        """The registered op, without gradients."""
        return getattr(torch.ops.ajour, self.name).default


def define_linear(name: str, matrix: type[SparseMatrix], kernels: Sequence[Kernel]) -> LinearOp:
    """Registers `ajour::name` for CPU and CUDA, with its fake and its autocast rule."""
    op = LinearOp(name, matrix, {kernel.name: kernel for kernel in kernels})

    def run(
        x: Tensor, packed: list[Tensor], bias: Tensor | None, kernels: str, activation: str, residual: Tensor | None = None
    ) -> Tensor:
        table = parse_row_table(kernels)
        _check(name, table, x, bias, activation, residual)
        shape = x.shape
        rows = x if len(shape) == 2 else x.reshape(-1, table.k)
        m = rows.shape[0]
        if m == 0 or table.n == 0:
            return x.new_empty((*shape[:-1], table.n))
        entry = table.at(m)
        if residual is not None and len(shape) != 2:
            residual = residual.reshape(m, table.n)
        y: Tensor = op.kernels[entry.kernel].run(
            rows, packed[entry.start : entry.stop], bias, residual, activation, entry
        )
        return y if len(shape) == 2 else y.view(*shape[:-1], table.n)

    def fake(
        x: Tensor, packed: list[Tensor], bias: Tensor | None, kernels: str, activation: str, residual: Tensor | None = None
    ) -> Tensor:
        table = parse_row_table(kernels)
        _check(name, table, x, bias, activation, residual)
        return x.new_empty((*x.shape[:-1], table.n))

    LIBRARY.define(name + SCHEMA, tags=(torch.Tag.pt2_compliant_tag,))
    for device in ("CPU", "CUDA"):
        LIBRARY.impl(name, run, device)
        _register_autocast(op, device)
    torch.library.register_fake(f"ajour::{name}", fake, lib=LIBRARY)
    return op


def _check(
    name: str, table: RowTable, x: Tensor, bias: Tensor | None, activation: str, residual: Tensor | None
) -> None:
    """The one border: what passes here is safe for every kernel."""
    shape = x.shape
    if not shape or shape[-1] != table.k:
        raise KernelError(f"{name}: x has shape {tuple(shape)}, the weight {table.n}x{table.k} needs [..., {table.k}]")
    if str(x.dtype)[6:] != table.dtype:
        raise KernelError(f"{name}: x is {str(x.dtype)[6:]}, the weight is {table.dtype}; convert one of them")
    if bias is not None and (bias.shape != (table.n,) or bias.dtype != x.dtype):
        raise KernelError(f"{name}: bias is {bias.dtype} {tuple(bias.shape)}, expected {x.dtype} ({table.n},)")
    if activation not in ACTIVATIONS:
        raise KernelError(f"{name}: activation {activation!r} is not one of {', '.join(ACTIVATIONS)}")
    if residual is not None and (residual.shape != (*shape[:-1], table.n) or residual.dtype != x.dtype):
        raise KernelError(
            f"{name}: residual is {residual.dtype} {tuple(residual.shape)}, expected {x.dtype} {(*shape[:-1], table.n)}"
        )


def _register_autocast(op: LinearOp, device: str) -> None:
    """Under autocast x is brought to the weight's dtype and y to autocast's, as a packed weight can't change its own."""
    key = getattr(torch._C.DispatchKey, "AutocastCPU" if device == "CPU" else "AutocastCUDA")
    keys = torch._C.DispatchKeySet(key)

    def autocast(
        x: Tensor, packed: list[Tensor], bias: Tensor | None, kernels: str, activation: str, residual: Tensor | None = None
    ) -> Tensor:
        dtype = getattr(torch, parse_row_table(kernels).dtype)
        with torch._C._ExcludeDispatchKeyGuard(keys):
            y = op.call(
                x.to(dtype), packed, None if bias is None else bias.to(dtype), kernels, activation,
                None if residual is None else residual.to(dtype),
            )  # fmt: skip
        return y.to(torch.get_autocast_dtype(x.device.type))

    LIBRARY.impl(op.name, autocast, "AutocastCPU" if device == "CPU" else "AutocastCUDA")
