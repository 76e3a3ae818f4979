"""Regrow: masks that move during training, at a density that stays (RigL and SET)."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor

from ajour.magnitude import largest, magnitudes
from ajour.terms.errors import PatternError
from ajour.terms.pattern import Pattern
from ajour.train.changes import MaskChange, change, whole_parameters
from ajour.train.optimizer import MaskedOptimizer
from ajour.train.readers import readers
from ajour.train.units import ENTRIES, live_units, unit_scores, whole_units


class Regrow:
    """Drops the smallest kept weights of every masked parameter and grows as many others, every so many steps.

    method:   "rigl" grows where |gradient| is largest (Evci et al. 2020, arXiv 1911.11134), "set" at random (Mocanu et
              al. 2018, arXiv 1707.04780), reproducibly by `seed`.
    fraction: of the kept that are dropped at first; at step t it is fraction / 2 (1 + cos(pi t / until)), and the
              number is rounded down for each parameter.
    every, until: masks change at every multiple of `every` below `until`.
    pattern:  Unstructured() for single entries, or a Block to move whole blocks, by their sums of |w| and |gradient|.

    Call `step()` once for each training step, between backward and the optimizer's step, whose place a change takes
    (with a GradScaler, that of its step and update):

        if regrow.step() is None:
            optimizer.step()

    The number of kept entries (or blocks) of each parameter never changes. Among equals the first in row-major order
    counts as larger. A dropped weight may grow again at once: then it keeps value and state; every other one grows from
    +0.0 with the state of a fresh one. RigL needs dense gradients: no `mask_gradients_` before it, and plain layers, as
    both that and a MaskedLinear put +0.0 outside the mask; SET takes either kind of layer. Raises PatternError for
    settings out of range, a mask that cuts through blocks, and by name for a MaskedLinear under RigL.
    """

    def __init__(
        self,
        optimizer: MaskedOptimizer,
        *,
        until: int,
        method: Literal["rigl", "set"] = "rigl",
        fraction: float = 0.3,
        every: int = 100,
        pattern: Pattern = ENTRIES,
        seed: int = 0,
    ) -> None:
        if method not in ("rigl", "set"):
            raise PatternError(f"method is 'rigl' or 'set'; found {method!r}")
        if not 0 <= fraction <= 1 or every < 1 or until < 0:
            raise PatternError(
                f"expected 0 <= fraction <= 1, every >= 1 and until >= 0; found {fraction}, {every}, {until}"
            )
        for name, mask in optimizer.masks.items():
            live_units(mask.dense(), pattern, name)
        if method == "rigl":
            for name, p in optimizer.masked_parameters().items():
                _refuse_masked_layers(name, p)
        self.optimizer, self.method, self.pattern = optimizer, method, pattern
        self.fraction, self.every, self.until = fraction, every, until
        self.count = 0
        self.generator = torch.Generator().manual_seed(seed)
        self._due = False

    def fraction_at(self, step: int) -> float:
        """The share of the kept that a change at this step drops."""
        return self.fraction / 2 * (1 + math.cos(math.pi * min(step, self.until) / max(1, self.until)))

    @torch.no_grad()
    def step(self) -> MaskChange | None:
        """Counts one training step; changes the masks if it is time and says how, else returns None.

        If a gradient holds NaN or Inf, as a GradScaler in search of its scale makes them, the change waits for the next
        step. Raises PatternError, by name, for "rigl" if a parameter has no gradient.
        """
        self.count += 1
        self._due |= self.count % self.every == 0 and self.count < self.until
        if not self._due:
            return None
        parameters = whole_parameters(self.optimizer)
        growth = {name: self._growth(name, p) for name, p in parameters.items()}
        if not all(bool(scores.isfinite().all()) for scores in growth.values()):
            return None
        self._due = False
        fraction = self.fraction_at(self.count)
        kept = {name: self._moved(name, p, growth[name], fraction) for name, p in parameters.items()}
        return change(self.optimizer, self.count, kept)

    def state_dict(self) -> dict[str, Any]:
        """What goes on after a reload: the count of steps and the state of the random numbers."""
        return {"count": self.count, "due": self._due, "generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues where `state_dict` was taken; the masks are the optimizer's to load."""
        self.count, self._due = state["count"], state["due"]
        self.generator.set_state(state["generator"])

    def _growth(self, name: str, p: Tensor) -> Tensor:
        """How much each unit deserves to grow."""
        if self.method == "rigl":
            _refuse_masked_layers(name, p)
            if p.grad is None:
                raise PatternError(f"{name!r} has no gradient to grow by; call step() after backward")
            return unit_scores(magnitudes(p.grad), self.pattern)
        units = unit_scores(torch.empty(p.shape, device="meta"), self.pattern).shape
        order = torch.randperm(units.numel(), generator=self.generator)  # without ties, unlike random scores
        return order.view(units).to(p.device, torch.float64)

    def _moved(self, name: str, p: Tensor, growth: Tensor, fraction: float) -> Tensor:
        """bool of p's shape: the mask after dropping and growing."""
        live = live_units(self.optimizer.masks[name].dense().to(p.device), self.pattern, name)
        size = unit_scores(magnitudes(p), self.pattern)
        return whole_units(drop_and_grow(size, growth, live, fraction), self.pattern, p.shape)


def _refuse_masked_layers(name: str, p: Tensor) -> None:
    if readers(p):
        raise PatternError(
            f"{name!r} is the weight of a MaskedLinear, whose gradient is zero outside the mask, so 'rigl' can't tell "
            "what should grow; use method='set', or plain layers (train.finish(model))"
        )


def drop_and_grow(size: Tensor, growth: Tensor, live: Tensor, fraction: float) -> Tensor:
    """bool: live, less the floor(fraction * live) units of the smallest size, plus as many of the largest growth.

    size, growth: at least 0, of the shape of `live`. What was just dropped may grow again.
    """
    kept = int(live.sum())
    moved = int(fraction * kept)
    stay = largest(torch.where(live, size, -1.0).flatten(), kept - moved)
    grown = largest(torch.where(stay, -1.0, growth.flatten()), moved)
    return (stay | grown).view_as(live)
