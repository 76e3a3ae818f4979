"""Lottery-ticket sparse fine-tuning: train in full, keep the entries that moved most, rewind, train only those."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ajour.magnitude import largest
from ajour.terms.errors import ConversionError, PatternError
from ajour.train.mask import Mask
from ajour.train.masks import Masks, check_shape
from ajour.train.places import find_places, parametrize_all


class _Shifted(torch.autograd.Function):
    """base + change, and base itself, bit for bit, where nothing changed (-0.0 + 0.0 would be +0.0)."""

    @staticmethod
    def forward(ctx: Any, base: Tensor, change: Tensor) -> Tensor:  # type: ignore[override]
        return torch.where(change == 0, base, base + change)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[None, Tensor]:  # type: ignore[override]
        return None, dy


class Change(nn.Module):
    """A parametrization: a weight as `base` plus a trained change, which is zero at first."""

    base: Tensor

    def __init__(self, base: Tensor) -> None:
        super().__init__()
        self.register_buffer("base", base.detach().clone())

    def forward(self, change: Tensor) -> Tensor:
        """base + change."""
        shifted: Tensor = _Shifted.apply(self.base, change)  # type: ignore[no-untyped-call]
        return shifted

    def right_inverse(self, w: Tensor) -> Tensor:
        """The change that makes w."""
        return w - self.base


def snapshot(model: nn.Module, names: Iterable[str] | None = None) -> dict[str, Tensor]:
    """name -> a copy of the parameter, for all that are trained or for those named: what `rewind` goes back to.

    Buffers, such as BatchNorm's statistics, are left to the caller. A tied parameter can't be rewound: leave it out.
    """
    held = dict(model.named_parameters())
    chosen = [name for name, p in held.items() if p.requires_grad] if names is None else list(names)
    return {name: held[name].detach().clone() for name in chosen}


def most_changed(
    model: nn.Module, before: Mapping[str, Tensor], count: int, beside: Mapping[str, Mask] | None = None
) -> Masks:
    """Masks of exactly `count` entries, over all parameters in `before`: those with the largest |now - before|.

    beside: masks of rounds before, for the iterative form of Ansell et al. 2022: `count` further entries are chosen
    among those that they don't keep, and the masks keep both. A round is: snapshot, train in full, most_changed, rewind
    to the round's snapshot, train under the masks, finish. Among equals the first in the order of `before`, then in
    row-major order. Raises PatternError unless count is within the number of entries that are left, or for a mask that
    doesn't fit, and ConversionError for a name that isn't in the model.
    """
    places = find_places(model, before)
    moved = [(_wide(places[name].parameter) - _wide(old)).abs().flatten() for name, old in before.items()]
    sizes = [part.numel() for part in moved]
    chosen = torch.cat([_chosen(name, old, beside or {}) for name, old in before.items()])
    left = int((~chosen).sum())
    if not 0 <= count <= left:
        raise PatternError(f"count={count} is not within the {left} entries of {len(sizes)} parameters that are left")
    kept = chosen.clone()
    kept[~chosen] = largest(torch.cat(moved)[~chosen], count)
    parts = zip(before, kept.split(sizes), strict=True)
    return Masks.from_tensors({name: part.view_as(before[name]) for name, part in parts})


def _chosen(name: str, old: Tensor, beside: Mapping[str, Mask]) -> Tensor:
    """bool [numel]: what an earlier round chose."""
    if name not in beside:
        return torch.zeros(old.numel(), dtype=torch.bool, device=old.device)
    check_shape(name, beside[name], old)
    return beside[name].dense().to(old.device).view(-1)


def rewind(model: nn.Module, before: Mapping[str, Tensor]) -> dict[str, nn.Parameter]:
    """Puts every parameter of `before` back, bit for bit, and in its stead trains its change; returns name -> change.

    Everything else keeps its `requires_grad`. Give the changes and the masks of `most_changed` to a masked optimizer:
    it holds the changes at zero outside the masks, and so the weights at their old values, exactly; its weight decay
    pulls towards the old weights, not to zero. `train.finish(model)` leaves plain weights. Ansell et al. 2022, arXiv
    2110.07560. Raises ConversionError for a name that isn't in the model, is tied, or has another shape.
    """
    places = find_places(model, before)
    for name, old in before.items():
        if old.shape != places[name].parameter.shape:
            found = tuple(places[name].parameter.shape)
            raise ConversionError(f"{name!r}: {tuple(old.shape)} in the snapshot, {found} in the model")
    with torch.no_grad():
        for name, old in before.items():
            places[name].parameter.copy_(old)
    parametrize_all(places, {name: Change(place.parameter) for name, place in places.items()})
    return {
        name: place.module.get_parameter(f"parametrizations.{place.leaf}.original") for name, place in places.items()
    }


def _wide(t: Tensor) -> Tensor:
    """At least float32, where two differences of half-precision weights don't round to a tie."""
    return t.detach().to(torch.promote_types(t.dtype, torch.float32))
