"""LT-SFT (composable-sft): `pytorch_diff.bin` = {"diffs": {name: {size, index_steps, values}}, "abs": {name: tensor}}.

`index_steps` are the gaps between sorted flat indices, and flattening runs along the *first* dimension fastest: for a
matrix down its columns, not along its rows as torch's does. Files of earlier versions say "body" and "head".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ajour.importers.change import Change, added, check_base, replaced
from ajour.importers.pickled_names import StoredTensor
from ajour.terms.errors import FileError

NAME = "LT-SFT"
_PARTS = ("size", "index_steps", "values")
_KEYS = (("diffs", "abs"), ("body", "head"))


def is_one(state: Mapping[str, Any]) -> bool:
    """Whether it is the content of a pytorch_diff.bin."""
    encoded = next((state[diffs] for diffs, _ in _KEYS if diffs in state), None)
    return isinstance(encoded, dict) and all(isinstance(v, dict) and set(_PARTS) <= set(v) for v in encoded.values())


def changes(state: Mapping[str, Any], read: Callable[[StoredTensor], Tensor]) -> Iterator[Change]:
    """One for each parameter."""
    differences, whole = next(pair for pair in _KEYS if pair[0] in state)
    for name, encoded in state[differences].items():
        size = _check(str(name), encoded)
        decoded = partial(_decode, str(name), size, encoded, read)
        yield Change(
            str(name), (str(name),), NAME, "difference",
            partial(_apply, str(name), size, decoded), partial(_dense, size, decoded), math.prod(size),
        )  # fmt: skip
    for name, tensor in (state.get(whole) or {}).items():
        if not isinstance(tensor, StoredTensor):
            raise FileError(f"{name}: expected a tensor among {whole!r}, found {type(tensor).__name__}")
        yield replaced(str(name), NAME, tensor.size, partial(read, tensor))


def _check(name: str, encoded: Mapping[str, Any]) -> tuple[int, ...]:
    size, steps, values = (encoded[part] for part in _PARTS)
    if not isinstance(size, tuple | list) or len(size) > 64 or not all(type(side) is int for side in size):
        raise FileError(f"{name}: its size is none of a tensor")
    if not all(0 <= side < 2**40 for side in size) or math.prod(size) >= 2**48:
        raise FileError(f"{name}: its size of {len(size)} sides is none of a tensor")
    if not isinstance(steps, list) or not all(type(step) is int and 0 <= step < 2**48 for step in steps):
        raise FileError(f"{name}: its index_steps should be whole numbers, none below 0")
    if not isinstance(values, StoredTensor) or values.size != (len(steps),) or not values.dtype.is_floating_point:
        raise FileError(f"{name}: expected a value for each of its {len(steps)} index_steps")
    return tuple(size)


def _decode(
    name: str, size: tuple[int, ...], encoded: Mapping[str, Any], read: Callable[[StoredTensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """(row-major places, values)."""
    steps = torch.tensor(encoded["index_steps"], dtype=torch.int64)
    places = steps.cumsum(0)
    if places.numel() and (not bool((steps[1:] > 0).all()) or not 0 <= int(places[-1]) < math.prod(size)):
        raise FileError(f"{name}: its index_steps leave the tensor of {size}, or name a place twice")
    row_major, inside = torch.zeros_like(places), math.prod(size)
    for side in size:
        inside //= max(side, 1)
        row_major += places % side * inside
        places = places // side
    return row_major, read(encoded["values"])


def _apply(name: str, size: tuple[int, ...], decoded: Callable[[], tuple[Tensor, Tensor]], base: Tensor) -> Tensor:
    check_base(base, size, name)
    return added(base, *decoded(), name)


def _dense(size: tuple[int, ...], decoded: Callable[[], tuple[Tensor, Tensor]]) -> Tensor:
    places, values = decoded()
    dense = values.new_zeros(math.prod(size))
    dense[places] = values
    return dense.view(size)
