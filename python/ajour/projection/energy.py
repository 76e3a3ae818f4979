"""What weights weigh: scores to choose by, and the energy that goes."""

from __future__ import annotations

import torch
from torch import Tensor

from ajour.magnitude import magnitudes


def scored(w: Tensor, scale: Tensor | None) -> Tensor:
    """[n, k]: |w|, by in feature times `scale`: [k]; in at least float32."""
    scores = magnitudes(w)
    return scores if scale is None else scores * scale.to(scores)


def lost_energy(w: Tensor, kept: Tensor) -> float:
    """The share of sum(w**2) outside of kept: bool [n, k]."""
    energy = w.double().square()
    total = float(energy.sum())
    return float(torch.where(kept, 0.0, energy).sum()) / total if total else 0.0
