"""Ways to damage stored tensors."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

Tensors = dict[str, Tensor]
Damage = Callable[[Tensors], None]


def put(name: str, place: int | tuple[int, ...], value: float) -> Damage:
    """Writes one value into one tensor."""

    def damage(tensors: Tensors) -> None:
        tensors[name] = tensors[name].clone()
        tensors[name][place] = value

    return damage


def swap(name: str, change: Callable[[Tensor], object]) -> Damage:
    """Puts what `change` makes of a tensor in its place."""

    def damage(tensors: Tensors) -> None:
        tensors[name] = change(tensors[name])

    return damage


def both(first: Damage, second: Damage) -> Damage:
    """One after the other."""

    def damage(tensors: Tensors) -> None:
        first(tensors)
        second(tensors)

    return damage


def drop(name: str) -> Damage:
    """Leaves one tensor out."""

    def damage(tensors: Tensors) -> None:
        del tensors[name]

    return damage
