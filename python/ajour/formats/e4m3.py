"""Rows rounded to e4m3, the 8-bit float with 3 bits of mantissa, under a scale that is a power of two.

Such a scale shifts exponents and nothing else: what is lost is the rounding to 4 significant bits (a relative error of
at most 2**-4, of normal values), and every rounded value is exact in the dtype that it came from.
"""

from __future__ import annotations

import torch
from torch import Tensor

E4M3 = torch.float8_e4m3fn
LARGEST = 448.0
STILL_ROUNDS = 464.0  # the midpoint between 448 and what would follow it; ties go to 448
# exponents of scales, so that scale * 2**-9, the smallest value, and scale * 448 are exact in the dtype
EXPONENTS = {torch.bfloat16: (-117, 119), torch.float16: (-15, 7)}


def row_scales(rows: Tensor) -> Tensor:
    """The smallest allowed power of two with max|row| / scale <= 464 for rows: [r, k]; [r], of their dtype.

    1 for a row of zeros; NaN for one that holds Inf or NaN. Where even the largest scale is too small (float16 beyond
    59392), values are clipped.
    """
    low, high = EXPONENTS[rows.dtype]
    largest = rows.abs().amax(1).float() if rows.shape[1] else rows.new_zeros(rows.shape[0], dtype=torch.float32)
    fraction, exponent = torch.frexp(largest / STILL_ROUNDS)
    exponent = torch.where(fraction == 0.5, exponent - 1, exponent).clamp(low, high)
    scales = torch.ldexp(torch.ones_like(largest), exponent)
    return torch.where(largest.isfinite(), scales, torch.nan).to(rows.dtype)


def round_rows(rows: Tensor, scales: Tensor) -> Tensor:
    """rows / scales in e4m3, rounded to nearest, ties to even, clipped at +-448; NaN where the scale is."""
    return (rows.float() / scales.float().unsqueeze(1)).clamp(-LARGEST, LARGEST).to(E4M3)


def unround(values: Tensor, scales: Tensor) -> Tensor:
    """values * scales, exactly, in the dtype of the scales."""
    return (values.float() * scales.float().unsqueeze(1)).to(scales.dtype)


def rounded(rows: Tensor) -> Tensor:
    """The rows as they are after rounding, in their own dtype; a row with Inf or NaN becomes NaN."""
    scales = row_scales(rows)
    return unround(round_rows(rows, scales), scales)
