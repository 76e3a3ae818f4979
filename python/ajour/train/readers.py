"""Which masked layers read a parameter: an optimizer's masks are theirs, too."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING
from weakref import WeakSet

from torch import Tensor

from ajour.terms.errors import PatternError

if TYPE_CHECKING:
    from ajour.train.held import Held
    from ajour.train.linear import MaskedLinear
    from ajour.train.mask import Mask

_LAYERS: WeakSet[MaskedLinear] = WeakSet()


def enlist(layer: MaskedLinear) -> None:
    """Every MaskedLinear that comes to be, copied and unpickled ones too. Nothing links a parameter to its layers."""
    _LAYERS.add(layer)


def readers(parameter: Tensor) -> list[MaskedLinear]:
    """The layers whose weight this very parameter is."""
    return [layer for layer in _LAYERS if layer._parameters.get("weight") is parameter]


def stray(held: Iterable[Held]) -> Iterator[tuple[Held, Mask, MaskedLinear]]:
    """Layers that don't have the mask under which their weight is held, or may not: asked in every step."""
    if _LAYERS:
        known = {id(each.parameter): each for each in held}
        for layer in list(_LAYERS):
            each = known.get(id(layer._parameters.get("weight")))
            if each is not None and each.mask is not None and not layer.follows(each.mask):
                yield each, each.mask, layer


def agree(held: Iterable[Held]) -> None:
    """PatternError by name for a layer whose mask is another than its weight's."""
    for each, mask, layer in stray(held):
        if layer.mask != mask:
            raise PatternError(
                f"{each.name!r} has another mask in its MaskedLinear (after set_mask, or with a state that was loaded) "
                f"than in this optimizer; say which holds: optimizer.change_masks({{{each.name!r}: layer.mask}}), or "
                f"layer.set_mask(optimizer.masks[{each.name!r}])"
            )
        layer.agree(mask)
