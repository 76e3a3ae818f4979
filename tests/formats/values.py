"""Every value that a weight can hold, and how a format must give it back."""

from __future__ import annotations

import torch
from torch import Tensor

from pruned import bits

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
HALVES = (torch.float16, torch.bfloat16)


def every_16_bit_value(dtype: torch.dtype) -> Tensor:
    """[256, 256]: each of the 65,536 bit patterns once: NaNs with every payload, infinities, subnormals, both zeros."""
    return torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype).view(256, 256)


def special_values(dtype: torch.dtype) -> Tensor:
    """[16]: NaNs with payloads, signalling ones too, infinities, the largest, the smallest, subnormals, both zeros."""
    if dtype == torch.float64:
        whole = [0x7FF8000000000001, 0x7FF0000000000001, 0x7FF0000000000000, 0x7FEFFFFFFFFFFFFF, 1, 2**52, 2**52 - 1, 0]
        signs = -(2**63)
    else:
        whole = [0x7FC00001, 0x7F800001, 0x7F800000, 0x7F7FFFFF, 1, 2**23, 2**23 - 1, 0]
        signs = -(2**31)
    both = torch.tensor(whole + [value + signs for value in whole])
    if dtype == torch.float64:
        return both.view(torch.float64)
    return (
        both.to(torch.int32).view(torch.float32).to(dtype)
        if dtype != torch.float32
        else both.to(torch.int32).view(dtype)
    )


def plus_zero(w: Tensor) -> Tensor:
    """w with +0.0 for -0.0, everything else bit for bit."""
    return torch.where(w == 0, torch.zeros_like(w), w)


def assert_exact(found: Tensor, w: Tensor) -> None:
    """Every bit of `found` is that of w: but for -0.0, which has become +0.0."""
    assert found.dtype == w.dtype
    assert found.shape == w.shape
    assert torch.equal(bits(found), bits(plus_zero(w)))
