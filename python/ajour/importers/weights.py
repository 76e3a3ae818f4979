"""find_weights: the layers that a file of any producer holds, as dense weights with their zeros."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial

from torch import Tensor

from ajour.importers.change import Change
from ajour.importers.changing import find_changes
from ajour.importers.checkpoint import Checkpoint
from ajour.importers.restoring import Stored, restored
from ajour.terms.errors import FileError

SMALLEST_SIDE = 16  # bare parameters with a smaller side (positions, scales, classifiers' tokens) are no layers
_EMBEDDING = re.compile(r"(^|\.)(\w*embed\w*|emb|wte|wpe|shared|relative_attention_bias)$")
_RECURRENT = re.compile(r"(^|\.)weight_[ih][hr](_l\d+(_reverse)?)?$")
_EXPERT = re.compile(r"(^|\.)experts\.\d+\.")


@dataclass(frozen=True)
class Weight:
    """One layer of a file.

    name: its path. kind: "Linear" where nothing speaks against it. shape: (n, k), more sides for fused experts.
    source: the tool whose mask is applied, or that packed it. reason: why it can't be converted, as far as a file can
    tell. note: what a reader must know. read(): the dense weight [n, k], masks applied; FileError if it is damaged.
    """

    name: str
    shape: tuple[int, ...]
    read: Callable[[], Tensor] = field(repr=False)
    kind: str = "Linear"
    source: str | None = None
    reason: str | None = None
    note: str | None = None


def find_weights(checkpoint: Checkpoint) -> list[Weight]:
    """Every layer, sorted by path; raises FileError for a packed kind that can't be read, by name."""
    changes = find_changes(checkpoint)
    found = list(_changed(checkpoint, changes) if changes else _stored(restored(checkpoint)))
    return sorted(
        found, key=lambda weight: [(int(p), "") if p.isdecimal() else (-1, p) for p in weight.name.split(".")]
    )


def _stored(tensors: list[Stored]) -> Iterator[Weight]:
    transposed = _transposed({stored.name: stored.shape for stored in tensors})
    for stored in tensors:
        shape = stored.shape
        if len(shape) < 2 or shape[0] == 1:
            continue
        path = "" if stored.name == "weight" else stored.name.removesuffix(".weight")
        turned = len(shape) == 2 and path.rpartition(".")[2] in transposed
        sides = shape[::-1] if turned else shape if len(shape) == 3 else (shape[0], math.prod(shape[1:]))
        if min(sides[-2:]) < SMALLEST_SIDE and stored.source is None:
            continue
        kind, reason = _kind(path, shape)
        kind = "Conv1D" if turned else kind
        yield Weight(path, sides, partial(_read, stored, turned), kind, stored.source, reason, stored.note)


def _changed(checkpoint: Checkpoint, changes: list[Change]) -> Iterator[Weight]:
    """What a file does to a base model, as far as it stands in the file alone."""
    for change in changes:
        if change.alone is None:
            raise FileError(
                f"{checkpoint.path} ({change.source}) changes a base model and does not say the shapes of its weights; "
                "ajour.read(path, model=) applies it"
            )
        alone = change.alone()
        if alone.dim() < 2 or min(alone.shape[0], alone[0].numel()) < SMALLEST_SIDE:
            continue
        reason = f"a {change.what} for a base model's weight; ajour.read(path, model=) applies it"
        shape = (alone.shape[0], alone[0].numel())
        read = partial(_read_alone, change.alone)
        yield Weight(change.key.removesuffix(".weight"), shape, read, change.what, change.source, reason)


def _read_alone(alone: Callable[[], Tensor]) -> Tensor:
    w = alone().flatten(1)
    return w if w.is_floating_point() else w.float()


def _transposed(shapes: Mapping[str, tuple[int, ...]]) -> set[str]:
    """Last names of layers that store [k, n], as the Conv1D of transformers does: their bias has the length of columns.

    A square layer can't tell, so all layers of one last name go by those that can.
    """
    votes: dict[str, set[bool]] = {}
    for name, shape in shapes.items():
        bias = shapes.get(f"{name.removesuffix('weight')}bias")
        if name.endswith(".weight") and len(shape) == 2 and bias is not None and shape[0] != shape[1]:
            votes.setdefault(name.split(".")[-2], set()).add(bias == shape[1:])
    return {leaf for leaf, turned in votes.items() if turned == {True}}


def _kind(path: str, shape: tuple[int, ...]) -> tuple[str, str | None]:
    if _EMBEDDING.search(path):
        return "Embedding", "an embedding by its name; only linear layers are converted"
    if _RECURRENT.search(path):
        return "RNN", "a recurrent layer by its name, which runs inside one fused call; there is no layer to swap"
    if _EXPERT.search(path):
        return "experts", "one of several experts by its name, which transformers fuses into one 3-D parameter"
    if len(shape) == 3:
        return "experts", f"fused experts: {shape[0]} of them in one 3-D tensor"
    if len(shape) > 3:
        return "Conv", "a convolution by its shape; only linear layers are converted"
    return "Linear", None


def _read(stored: Stored, turned: bool) -> Tensor:
    w = stored.read()
    w = w.reshape(-1, w.shape[-1]) if w.dim() == 3 else w.flatten(1)
    return w.t().contiguous() if turned else w
