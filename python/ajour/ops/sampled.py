"""Products at stored places only, in torch.library's terms: dW of a sparse layer, fresh or added to a gradient."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ajour.ops.border import check_devices
from ajour.ops.library import LIBRARY
from ajour.ops.watchers import unwatched
from ajour.terms.errors import KernelError
from ajour.terms.kernel import SampledKernel
from ajour.terms.pattern import Block
from ajour.terms.row_table import RowTable, parse_row_table

_ARGUMENTS = "Tensor dy, Tensor x, Tensor[] index, str kernels"
_INDEX = 5  # row_offsets, columns, rows, column_offsets, order of a BlockMatrix


@dataclass(frozen=True)
class SampledOp:
    """An op (dy: [..., n], x: [..., k], index) -> the stored places of dy.T @ x, and its kernels by name.

    Sums in float32 (float64 for float64), always in the same order.
    """

    name: str
    kernels: dict[str, SampledKernel]
    run: Callable[[Tensor, Tensor, list[Tensor], str], Tensor]

    def kernel(self, name: str) -> SampledKernel:
        """The kernel of that name; raises KernelError."""
        if name not in self.kernels:
            raise KernelError(f"{self.name} has no kernel {name!r}; it has {', '.join(self.kernels)}")
        return self.kernels[name]

    def call(self, dy: Tensor, x: Tensor, index: list[Tensor], kernels: str) -> Tensor:
        """blocks: [live, rows, cols] of dy's dtype; without gradients."""
        if unwatched(dy):
            return self.run(dy, x, index, kernels)
        blocks: Tensor = getattr(torch.ops.ajour, self.name).default(dy, x, index, kernels)
        return blocks

    @property
    def add(self) -> Callable[[Tensor, Tensor, Tensor, list[Tensor], str], None]:
        """(gradient, dy, x, index, kernels), in place; gradient: [live, rows, cols] of dy's dtype or float32."""
        registered: Callable[[Tensor, Tensor, Tensor, list[Tensor], str], None] = getattr(
            torch.ops.ajour, f"{self.name}_"
        ).default
        return registered


def define_sampled(name: str, kernels: Sequence[SampledKernel]) -> SampledOp:
    """Registers `ajour::name` and `ajour::name_`, which adds in place, for CPU and CUDA, with their fakes."""

    def fill(gradient: Tensor, dy: Tensor, x: Tensor, index: list[Tensor], table: RowTable, accumulate: bool) -> None:
        if not (gradient.numel() and x.shape[:-1].numel()):
            if not accumulate:
                gradient.zero_()
            return
        entry = table.at(x.shape[:-1].numel())
        op.kernel(entry.kernel).run(gradient, dy.reshape(-1, table.n), x.reshape(-1, table.k), index, accumulate, entry)

    def run(dy: Tensor, x: Tensor, index: list[Tensor], kernels: str) -> Tensor:
        table = parse_row_table(kernels)
        _check(name, table, dy, x, index)
        check_devices(name, x, [dy, *index])
        gradient = dy.new_empty(_shape(table, index))
        fill(gradient, dy, x, index, table, False)
        return gradient

    op = SampledOp(name, {kernel.name: kernel for kernel in kernels}, run)

    def add(gradient: Tensor, dy: Tensor, x: Tensor, index: list[Tensor], kernels: str) -> None:
        table = parse_row_table(kernels)
        _check(name, table, dy, x, index)
        _check_gradient(name, gradient, dy, _shape(table, index))
        check_devices(name, x, [dy, gradient, *index])
        fill(gradient, dy, x, index, table, True)

    def fake(dy: Tensor, x: Tensor, index: list[Tensor], kernels: str) -> Tensor:
        table = parse_row_table(kernels)
        _check(name, table, dy, x, index)
        return dy.new_empty(_shape(table, index))

    def fake_add(gradient: Tensor, dy: Tensor, x: Tensor, index: list[Tensor], kernels: str) -> None:
        table = parse_row_table(kernels)
        _check(name, table, dy, x, index)
        _check_gradient(name, gradient, dy, _shape(table, index))

    for full, schema, implementation, meaning in (
        (name, f"({_ARGUMENTS}) -> Tensor", run, fake),
        (f"{name}_", f"(Tensor(a!) gradient, {_ARGUMENTS}) -> ()", add, fake_add),
    ):
        LIBRARY.define(full + schema, tags=(torch.Tag.pt2_compliant_tag,))
        LIBRARY.impl(full, implementation, "CPU")
        LIBRARY.impl(full, implementation, "CUDA")
        torch.library.register_fake(f"ajour::{full}", meaning, lib=LIBRARY)
    return op


def _shape(table: RowTable, index: Sequence[Tensor]) -> tuple[int, int, int]:
    assert isinstance(table.pattern, Block)
    return index[1].shape[0], table.pattern.rows, table.pattern.cols


def _check(name: str, table: RowTable, dy: Tensor, x: Tensor, index: Sequence[Tensor]) -> None:
    if not isinstance(table.pattern, Block):
        raise KernelError(f"{name}: expected a block pattern, found {table.pattern}")
    rows = dy.shape[:-1]
    if not (dy.dim() and x.dim()) or (dy.shape, x.shape) != ((*rows, table.n), (*rows, table.k)):
        raise KernelError(
            f"{name}: dy has shape {tuple(dy.shape)} and x {tuple(x.shape)}, the weight {table.n}x{table.k} needs "
            f"[..., {table.n}] and [..., {table.k}]"
        )
    if not str(dy.dtype)[6:] == str(x.dtype)[6:] == table.dtype:
        raise KernelError(f"{name}: dy is {dy.dtype}, x is {x.dtype}, the weight is {table.dtype}; convert them")
    if len(index) != _INDEX or any(t.dtype is not torch.int32 or t.dim() != 1 for t in index):
        raise KernelError(f"{name}: expected the {_INDEX} int32 indices of a BlockMatrix, found {len(index)} tensors")


def _check_gradient(name: str, gradient: Tensor, dy: Tensor, shape: tuple[int, int, int]) -> None:
    if gradient.shape != shape or gradient.dtype not in (dy.dtype, torch.float32) or not gradient.is_contiguous():
        raise KernelError(
            f"{name}: expected a contiguous gradient {shape} of {dy.dtype} or float32, "
            f"found {tuple(gradient.shape)} {gradient.dtype}"
        )
