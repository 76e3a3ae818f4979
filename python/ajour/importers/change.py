"""Files that hold no whole weights, but what to do to those of a base model: masks for it, or sparse differences."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from ajour.terms.errors import FileError


@dataclass(frozen=True)
class Change:
    """What becomes of one parameter.

    key:    the file's name for it.
    names:  of the parameter; the first one that the model has is meant.
    source: the tool. what: "mask" or "difference" or "whole" (the parameter is replaced).
    apply:  the base's values -> the new ones, a tensor of its own; FileError, naming it, if they don't fit.
    alone:  the mask or difference as a dense tensor; None where its shape is not in the file.
    size:   elements of `alone`, as the file claims them.
    """

    key: str
    names: tuple[str, ...]
    source: str
    what: str
    apply: Callable[[Tensor], Tensor] = field(repr=False)
    alone: Callable[[], Tensor] | None = field(default=None, repr=False)
    size: int = 0


def check_base(base: Tensor, shape: tuple[int, ...], name: str) -> None:
    """Raises FileError unless the model's tensor has that shape."""
    if tuple(base.shape) != tuple(shape):
        raise FileError(f"{name}: the file is for {tuple(shape)}, the model holds {tuple(base.shape)}")


def added(base: Tensor, places: Tensor, values: Tensor, name: str) -> Tensor:
    """base + values at row-major places; entries elsewhere keep their bits."""
    if values.dtype != base.dtype:
        kind = str(values.dtype).removeprefix("torch.")
        raise FileError(
            f"{name}: its differences are {kind}, the model's values {base.dtype}; call model.to({kind}) first"
        )
    new = base.detach().cpu().clone().contiguous()
    flat = new.view(-1)
    flat[places] += values
    return new


def replaced(name: str, source: str, shape: tuple[int, ...], read: Callable[[], Tensor]) -> Change:
    """A tensor that stands in the file whole, such as a trained head."""

    def apply(base: Tensor) -> Tensor:
        check_base(base, shape, name)
        return read()

    return Change(name, (name,), source, "whole", apply, read)
