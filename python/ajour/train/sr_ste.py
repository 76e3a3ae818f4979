"""SR-STE: an N:M mask that is chosen anew at every forward, with a gradient for the weights that it leaves out."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ajour.magnitude import keep_largest, magnitudes
from ajour.terms.errors import PatternError
from ajour.terms.pattern import NM

DECAY = 2e-4  # the paper's lambda


class _Refined(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, w: Tensor, keep: Tensor, decay: float) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(w, keep)
        ctx.decay = decay
        return torch.where(keep, w, 0.0)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        w, keep = ctx.saved_tensors
        return torch.where(keep, dy, dy + ctx.decay * w), None, None


def sr_ste(w: Tensor, pattern: NM, decay: float = DECAY) -> Tensor:
    """w: [n, k] with all but the `keep` largest |w| of every group at +0.0; among equals the first stay.

    The gradient passes straight through to every entry of w, and the entries left out get `decay * w` on top:
    dw = dy + decay * (1 - mask) * w (Zhou et al. 2021, arXiv 2102.04010, equation 9), so that a mask settles. Plain
    straight-through is decay=0.
    """
    _check(w, pattern)
    keep = keep_largest(magnitudes(w), pattern, 1.0)
    refined: Tensor = _Refined.apply(w, keep, decay)  # type: ignore[no-untyped-call]
    return refined


class SrSte(nn.Module):
    """`sr_ste` as a parametrization of a linear layer's weight [n, k]; `train.finish(model)` leaves the zeros.

    torch.nn.utils.parametrize.register_parametrization(layer, "weight", SrSte(NM(2, 4))); the optimizer then trains
    the dense weight under it, as it trains any other parameter. No mask is held: it is found anew in every forward,
    for O(n k) more work. Raises PatternError for another pattern or a weight that isn't 2-D.
    """

    def __init__(self, pattern: NM, decay: float = DECAY) -> None:
        super().__init__()
        if not isinstance(pattern, NM):
            raise PatternError(f"SrSte chooses N:M masks; found {pattern}")
        self.pattern, self.decay = pattern, decay

    def forward(self, w: Tensor) -> Tensor:
        """The weight with its N:M zeros."""
        return sr_ste(w, self.pattern, self.decay)

    def extra_repr(self) -> str:
        """Pattern and decay."""
        return f"{self.pattern}, decay={self.decay:g}"


def _check(w: Tensor, pattern: NM) -> None:
    if w.dim() != 2 or not isinstance(pattern, NM):
        raise PatternError(f"sr_ste takes a weight [n, k] and an N:M pattern; found {tuple(w.shape)} and {pattern}")
