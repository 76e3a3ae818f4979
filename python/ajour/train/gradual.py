"""GradualPruning: masks that close during training along a cubic schedule."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ajour.magnitude import keep_largest, largest, magnitudes
from ajour.terms.errors import PatternError
from ajour.terms.pattern import NM, Dense, Pattern
from ajour.train.changes import MaskChange, change, whole_parameters
from ajour.train.optimizer import MaskedOptimizer
from ajour.train.units import ENTRIES, live_units, unit_scores, whole_units


class GradualPruning:
    """Prunes the smallest kept weights of every masked parameter, more of them first and fewer towards the end.

    At step t the density is density + (initial - density) (1 - (t - start) / (until - start))^3 (Zhu and Gupta 2017,
    arXiv 1710.01878, equation 1, which says it of sparsity), at start, every `every` steps after it, and at until.

    pattern: Unstructured() and Block by that density, rounded to a whole number of entries or blocks for each
    parameter. NM(keep, group) ends at keep / group, which is its density, and goes there through the patterns between:
    group - 1 of group first, `keep` last; its parameters are weights [n, k].

    Give the optimizer masks of density `initial`, such as Masks.from_pattern(model, Unstructured(), 1.0), and call
    `step()` after each of its steps. What is pruned stays pruned. Among equals the first in row-major order stays.
    Raises PatternError for settings that don't go together, or a mask that cuts through blocks.
    """

    def __init__(
        self,
        optimizer: MaskedOptimizer,
        density: float | None = None,
        *,
        until: int,
        start: int = 0,
        every: int = 100,
        initial: float = 1.0,
        pattern: Pattern = ENTRIES,
    ) -> None:
        if isinstance(pattern, Dense) or isinstance(pattern, NM) != (density is None):
            raise PatternError(f"{pattern} and density={density} don't go together; N:M alone has its own density")
        self.density = pattern.keep / pattern.group if isinstance(pattern, NM) else float(density or 0.0)
        if not 0 <= self.density <= initial <= 1 or not 0 <= start < until or every < 1:
            raise PatternError(
                "expected 0 <= density <= initial <= 1, 0 <= start < until and every >= 1; "
                f"found {self.density}, {initial}, {start}, {until}, {every}"
            )
        for name, mask in optimizer.masks.items():
            if isinstance(pattern, NM):
                if len(mask.shape) != 2:
                    raise PatternError(f"{name!r}: {pattern} needs a 2-D weight [n, k], found {tuple(mask.shape)}")
            else:
                live_units(mask.dense(), pattern, name)
        self.optimizer, self.pattern = optimizer, pattern
        self.initial, self.start, self.until, self.every = initial, start, until, every
        self.count = 0

    def density_at(self, step: int) -> float:
        """The density that the schedule asks for at this step."""
        left = 1 - (min(max(step, self.start), self.until) - self.start) / (self.until - self.start)
        return self.density + (self.initial - self.density) * left**3

    @torch.no_grad()
    def step(self) -> MaskChange | None:
        """Counts one training step; prunes if it is time and says how, else returns None."""
        self.count += 1
        since = self.count - self.start
        if not (since >= 0 and since % self.every == 0 and self.count <= self.until) and self.count != self.until:
            return None
        density = self.density_at(self.count)
        parameters = whole_parameters(self.optimizer)
        return change(
            self.optimizer, self.count, {name: self._kept(name, p, density) for name, p in parameters.items()}
        )

    def state_dict(self) -> dict[str, Any]:
        """The count of steps."""
        return {"count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues where `state_dict` was taken; the masks are the optimizer's to load."""
        self.count = state["count"]

    def _kept(self, name: str, p: Tensor, density: float) -> Tensor:
        """bool of p's shape: what is left of the mask at this density."""
        kept = self.optimizer.masks[name].dense().to(p.device)
        if isinstance(self.pattern, NM):
            keep = max(self.pattern.keep, round(density * self.pattern.group))
            if keep == self.pattern.group:
                return kept
            return kept & keep_largest(torch.where(kept, magnitudes(p), -1.0), NM(keep, self.pattern.group), 1.0)
        live = live_units(kept, self.pattern, name)
        size = unit_scores(magnitudes(p), self.pattern)
        chosen = largest(torch.where(live, size, -1.0).flatten(), round(density * live.numel()))
        return whole_units(live & chosen.view_as(live), self.pattern, p.shape)
