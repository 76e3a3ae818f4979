"""Products with the transposed weight, dy: [..., n] -> dy @ w: [..., k], as an op of its own: what dx of a layer is."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ajour.memory import HOST
from ajour.ops.border import check_devices
from ajour.ops.library import LIBRARY, LinearOp
from ajour.ops.watchers import unwatched
from ajour.terms.errors import KernelError
from ajour.terms.row_table import RowTable, parse_row_table


def define_transposed(op: LinearOp) -> Callable[[Tensor, list[Tensor], str], Tensor]:
    """Registers `ajour::name_t` for an op and returns it, without gradients: (dy, packed, kernels) -> dy @ w.

    It reads the packed tensors and the row table of the op itself: the kernel that serves a number of rows there serves
    it here. Raises KernelError for what does not fit together.
    """
    name = f"{op.name}_t"

    def run(dy: Tensor, packed: list[Tensor], kernels: str) -> Tensor:
        table = parse_row_table(kernels)
        _check(name, table, dy, packed)
        if not (table.n and table.k and dy.numel()):
            return dy.new_zeros(*dy.shape[:-1], table.k)
        rows = dy if dy.dim() == 2 else dy.reshape(-1, table.n)
        entry = table.at(rows.shape[0])
        kernel, tensors = op.kernel(entry.kernel), packed[entry.start : entry.stop]
        if kernel.run_t is not None:
            y: Tensor = kernel.run_t(rows, tensors, entry)
        else:
            with torch.device(HOST):
                y = rows @ kernel.unpack(tensors, table.pattern, (table.n, table.k)).to_dense()
        return y if dy.dim() == 2 else y.view(*dy.shape[:-1], table.k)

    def run_on_cuda(dy: Tensor, packed: list[Tensor], kernels: str) -> Tensor:
        check_devices(name, dy, packed)
        return run(dy, packed, kernels)

    def fake(dy: Tensor, packed: list[Tensor], kernels: str) -> Tensor:
        table = parse_row_table(kernels)
        _check(name, table, dy, packed)
        return dy.new_empty(*dy.shape[:-1], table.k)

    schema = "(Tensor dy, Tensor[] packed, str kernels) -> Tensor"
    LIBRARY.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
    LIBRARY.impl(name, run, "CPU")
    LIBRARY.impl(name, run_on_cuda, "CUDA")
    torch.library.register_fake(f"ajour::{name}", fake, lib=LIBRARY)
    registered: Callable[[Tensor, list[Tensor], str], Tensor] = getattr(torch.ops.ajour, name).default

    def call(dy: Tensor, packed: list[Tensor], kernels: str) -> Tensor:
        return run(dy, packed, kernels) if unwatched(dy) else registered(dy, packed, kernels)

    return call


def _check(name: str, table: RowTable, dy: Tensor, packed: list[Tensor]) -> None:
    if not dy.dim() or dy.shape[-1] != table.n:
        raise KernelError(
            f"{name}: dy has shape {tuple(dy.shape)}, the weight {table.n}x{table.k} needs [..., {table.n}]"
        )
    if str(dy.dtype)[6:] != table.dtype:
        raise KernelError(f"{name}: dy is {str(dy.dtype)[6:]}, the weight is {table.dtype}; convert one of them")
    if len(packed) < table.needs:
        raise KernelError(f"{name}: {str(table)!r} reads {table.needs} packed tensors, found {len(packed)}")
