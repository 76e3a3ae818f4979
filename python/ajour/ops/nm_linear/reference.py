"""The meaning of nm_linear in plain torch, on the canonical tensors: y = activation(x @ w.T + bias) + residual."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from ajour.formats.nm import NMMatrix
from ajour.ops.reference_kernel import reference_kernel
from ajour.terms.pattern import NM


def places(packed: Sequence[Tensor], pattern: NM) -> Tensor:
    """The column, in k padded to whole groups, of each stored value: int64 [n, groups * keep]."""
    values, positions = packed
    n, kept = values.shape
    bits = (pattern.group - 1).bit_length()
    # codes that straddle no bytes are taken apart as bytes: 2.5 ms instead of 11 (3072x768 in 2:4, Zen 5)
    if 8 % bits == 0:
        shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=values.device)
        within = ((positions.unsqueeze(-1) >> shifts) & ((1 << bits) - 1)).view(n, -1)[:, :kept].long()
    else:
        each = torch.arange(kept * bits, device=values.device)
        stream = (positions[:, each // 8].long() >> (each % 8)) & 1
        within = (stream.view(n, kept, bits) << torch.arange(bits, device=values.device)).sum(-1)
    return within + torch.arange(kept, device=values.device) // pattern.keep * pattern.group


def expand(packed: Sequence[Tensor], pattern: NM, shape: tuple[int, int]) -> Tensor:
    """w: [n, k] from values and positions, differentiable in the values."""
    n, k = shape
    dense = packed[0].new_zeros(n, -(-k // pattern.group) * pattern.group)
    return dense.scatter(1, places(packed, pattern), packed[0])[:, :k]


def collect(dw: Tensor, packed: Sequence[Tensor], pattern: NM) -> Tensor:
    """The gradient of the values from dw: [n, k], the gradient of the dense weight; zero where a group overhangs k."""
    return pad(dw, (0, -dw.shape[1] % pattern.group)).gather(1, places(packed, pattern))


KERNEL = reference_kernel(NMMatrix, expand)
