"""Which entries of a weight stay when the smallest are dropped: exact counts, and among equals the first."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from ajour.terms.pattern import NM, Block, Pattern, Unstructured


def magnitudes(w: Tensor) -> Tensor:
    """|w| in at least float32, so that the sums of a block's entries don't round to ties."""
    return w.detach().abs().to(torch.promote_types(w.dtype, torch.float32))


def largest(scores: Tensor, count: int) -> Tensor:
    """True at exactly `count` entries of the last side, the largest; among equals the first. NaN counts as largest."""
    total = scores.shape[-1]
    if count == 0 or total == 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    scores = scores.nan_to_num(nan=torch.inf, posinf=torch.inf, neginf=-torch.inf)
    least = scores.kthvalue(total - count + 1, dim=-1, keepdim=True).values
    above, equal = scores > least, scores == least
    return above | (equal & (equal.cumsum(-1) <= count - above.sum(-1, keepdim=True)))


def keep_largest(scores: Tensor, pattern: Pattern, density: float, balanced: bool = False) -> Tensor:
    """bool [n, k]: which entries of a weight with these scores [n, k] stay.

    NM keeps the `keep` largest of every group, whatever `density` is; Block the blocks with the largest sums, a whole
    number of them, and `balanced` the same number in every block row; Unstructured the largest of all.
    """
    n, k = scores.shape
    if isinstance(pattern, NM):
        groups = functional.pad(scores, (0, -k % pattern.group), value=-1.0).view(n, -1, pattern.group)
        return largest(groups, pattern.keep).view(n, -1)[:, :k]
    if isinstance(pattern, Block):
        blocks = block_sums(scores, pattern)
        units = blocks if balanced else blocks.flatten()
        return spread(largest(units, round(density * units.shape[-1])).view_as(blocks), pattern, (n, k))
    assert isinstance(pattern, Unstructured)
    return largest(scores.flatten(), round(density * scores.numel())).view_as(scores)


def block_sums(scores: Tensor, pattern: Block) -> Tensor:
    """[n / rows, k / cols], both rounded up: the sum over each block of scores [n, k]."""
    n, k = scores.shape
    padded = functional.pad(scores, (0, -k % pattern.cols, 0, -n % pattern.rows))
    return padded.view(-(-n // pattern.rows), pattern.rows, -(-k // pattern.cols), pattern.cols).sum((1, 3))


def spread(blocks: Tensor, pattern: Block, shape: tuple[int, int]) -> Tensor:
    """bool [n, k] of `shape`: True in the blocks [n / rows, k / cols] that are True."""
    n, k = shape
    return blocks.repeat_interleave(pattern.rows, 0)[:n].repeat_interleave(pattern.cols, 1)[:, :k]
