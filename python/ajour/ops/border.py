"""What a call of an op must be: what passes here is safe for every kernel."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ajour.formats.matrix import DTYPES
from ajour.terms.errors import KernelError
from ajour.terms.problem import ACTIVATIONS
from ajour.terms.row_table import RowTable

FLOATING = {str(dtype).removeprefix("torch."): dtype for dtype in DTYPES}  # by the name that row tables have


def check_call(
    name: str,
    table: RowTable,
    x: Tensor,
    shape: torch.Size,
    packed: list[Tensor],
    bias: Tensor | None,
    activation: str,
    residual: Tensor | None,
) -> None:
    """Raises KernelError that names what is wrong with a call of y = activation(x @ w.T + bias) + residual."""
    if not shape or shape[-1] != table.k:
        raise KernelError(f"{name}: x has shape {tuple(shape)}, the weight {table.n}x{table.k} needs [..., {table.k}]")
    dtype = x.dtype
    if dtype is not FLOATING[table.dtype]:
        raise KernelError(f"{name}: x is {str(dtype)[6:]}, the weight is {table.dtype}; convert one of them")
    if len(packed) < table.needs:
        raise KernelError(f"{name}: {str(table)!r} reads {table.needs} packed tensors, found {len(packed)}")
    if bias is not None and (bias.shape != (table.n,) or bias.dtype is not dtype):
        raise KernelError(f"{name}: bias is {bias.dtype} {tuple(bias.shape)}, expected {dtype} ({table.n},)")
    if activation not in ACTIVATIONS:
        raise KernelError(f"{name}: activation {activation!r} is not one of {', '.join(ACTIVATIONS)}")
    if residual is not None and (residual.shape != (*shape[:-1], table.n) or residual.dtype is not dtype):
        raise KernelError(
            f"{name}: residual is {residual.dtype} {tuple(residual.shape)}, expected {dtype} {(*shape[:-1], table.n)}"
        )


def check_devices(name: str, x: Tensor, others: Sequence[Tensor | None]) -> None:
    """One CUDA tensor among CPU ones is enough for the dispatcher to call CUDA; a wrong pointer must not get there."""
    device = x.device
    for other in others:
        if other is not None and other.device != device:
            raise KernelError(f"{name}: x is on {device}, another tensor on {other.device}; move the model or x")
