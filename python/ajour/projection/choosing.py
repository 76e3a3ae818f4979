"""Which entries of a weight stay when it is projected to a pattern."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from ajour.magnitude import block_sums, largest, spread
from ajour.terms.pattern import NM, Block, Pattern

LOSE = 0.01  # of a layer's energy, what blocks and scattered weights may lose unless the caller says otherwise


def kept_places(scores: Tensor, live: Tensor, pattern: Pattern, lose: float, order: Tensor | None = None) -> Tensor:
    """bool [n, k]: which of the live entries of a weight with these scores: [n, k] stay.

    NM: the `keep` largest of every group, after the columns were put in `order`; a group that fits loses nothing.
    Block: as many blocks die, the weakest first by their sum of squares, as lose at most `lose` of all squares.
    Unstructured: the smallest entries go, by the same bound. Among equals the first stays.
    """
    if isinstance(pattern, NM):
        if order is None:
            return live & _kept_of_groups(scores, live, pattern)
        return (live[:, order] & _kept_of_groups(scores[:, order], live[:, order], pattern))[:, order.argsort()]
    energy = scores.double().square()
    if isinstance(pattern, Block):
        blocks = block_sums(energy, pattern)
        return live & spread(_strong(blocks.flatten(), lose).view_as(blocks), pattern, (live.shape[0], live.shape[1]))
    return live & _strong(energy.flatten(), lose).view_as(live)


def _kept_of_groups(scores: Tensor, live: Tensor, pattern: NM) -> Tensor:
    n, k = scores.shape
    ranked = pad(torch.where(live, scores, -1.0), (0, -k % pattern.group), value=-1.0)
    return largest(ranked.view(n, -1, pattern.group), pattern.keep).view(n, -1)[:, :k]


def _strong(energy: Tensor, lose: float) -> Tensor:
    """bool: all but the smallest entries that together make at most `lose` of the sum."""
    order = energy.argsort(stable=True, descending=True)
    weakest_first = order.flip(0)
    lost = energy[weakest_first].cumsum(0)
    strong = torch.ones_like(energy, dtype=torch.bool)
    strong[weakest_first[lost <= lose * energy.sum()]] = False
    return strong
