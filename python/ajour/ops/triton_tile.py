"""What the Triton kernels share: the end of a tile (bias, activation, residual, store) and how one is launched.

Imported by the kernels' modules alone, as it needs Triton.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import triton.language as tl
from torch import Tensor
from triton.errors import TritonError

import triton
from ajour.terms.errors import KernelError


@triton.jit
def activate(y, ACTIVATION: tl.constexpr):
    """activation(y) in float32; NaN stays NaN."""
    if ACTIVATION == "relu":
        y = tl.where(y < 0, 0.0, y)
    if ACTIVATION == "gelu":
        y = 0.5 * y * (1.0 + tl.erf(y * 0.7071067811865476))
    if ACTIVATION == "gelu_tanh":  # (1 + tanh(z)) / 2 = sigmoid(2 z)
        y = y * tl.sigmoid(1.5957691216057308 * (y + 0.044715 * y * y * y))
    if ACTIVATION == "silu":
        y = y * tl.sigmoid(y)
    return y


@triton.jit
def finish(acc, y, bias, residual, rows, columns, m, n, ACTIVATION: tl.constexpr):
    """y[rows, columns] = activation(acc + bias) + residual; rows >= m and columns >= n are left alone."""
    live = (rows < m)[:, None] & (columns < n)[None, :]
    if bias is not None:
        acc += tl.load(bias + columns, mask=columns < n, other=0.0).to(tl.float32)[None, :]
    acc = activate(acc, ACTIVATION)
    places = rows.to(tl.int64)[:, None] * n + columns[None, :]
    if residual is not None:
        acc += tl.load(residual + places, mask=live, other=0.0).to(tl.float32)
    tl.store(y + places, acc.to(y.dtype.element_ty), mask=live)


@triton.jit
def any_nan(acc):
    """Whether some element is NaN: the trace that Inf or NaN of x leaves where a dense tile multiplies it by a zero."""
    return tl.max(tl.max((acc != acc).to(tl.int32), 1), 0) > 0


@cache
def capability_of(device: torch.device) -> tuple[int, int]:
    """Of a GPU; the interpreter can do what sm_90 can."""
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else (9, 0)


def launch(kernel: Any, programs: int | tuple[int, ...], x: Tensor, *args: Any, **options: Any) -> None:
    """Runs that many programs on x's device and current stream; KernelError where a tile has no room on it."""
    with torch.cuda.device_of(x):
        try:
            kernel[programs if isinstance(programs, tuple) else (programs,)](x, *args, **options)
        except TritonError as error:  # no RuntimeError: a planner would stop at it
            raise KernelError(f"Triton can't run this tile on {x.device}: {error}; plan with another one") from error


def unit_rows(x: Tensor) -> Tensor:
    """x with neighbours in memory along k, which the kernels count on; a copy if it isn't so already."""
    return x if x.stride(1) == 1 else x.contiguous()
