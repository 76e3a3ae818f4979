"""What a schedule reports when it has changed masks, and how the change reaches the optimizer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from ajour.terms.errors import PatternError
from ajour.train.mask import Mask
from ajour.train.optimizer import MaskedOptimizer


@dataclass(frozen=True)
class MaskChange:
    """One change of all masks of an optimizer.

    step: the schedule's own count. density, removed, added: parameter name -> kept share after it, entries that left
    and entries that joined.
    """

    step: int
    density: Mapping[str, float]
    removed: Mapping[str, int]
    added: Mapping[str, int]
    total: float

    def __str__(self) -> str:
        removed, added = sum(self.removed.values()), sum(self.added.values())
        layers = ", ".join(f"{name} {density:.4f}" for name, density in self.density.items())
        return f"step {self.step}: density {self.total:.4f}, {removed} removed, {added} added ({layers})"


def whole_parameters(optimizer: MaskedOptimizer) -> dict[str, Tensor]:
    """Name -> each masked parameter; PatternError for a sharded one: all its magnitudes are compared."""
    for name, parameter in optimizer.masked_parameters().items():
        if hasattr(parameter, "to_local"):
            raise PatternError(f"{name!r} is sharded; change its mask with whole parameters, as under DDP")
    return optimizer.masked_parameters()


def change(optimizer: MaskedOptimizer, step: int, kept: Mapping[str, Tensor]) -> MaskChange:
    """Gives the optimizer the masks kept: name -> bool, of the parameter's shape, and says what that changed."""
    before = {name: optimizer.masks[name] for name in kept}
    after = {name: Mask.from_dense(dense) for name, dense in kept.items()}
    optimizer.change_masks(after)
    staying = {name: (before[name] & mask).kept for name, mask in after.items()}
    return MaskChange(
        step,
        optimizer.masks.densities(),
        {name: before[name].kept - staying[name] for name in kept},
        {name: mask.kept - staying[name] for name, mask in after.items()},
        optimizer.masks.density(),
    )
