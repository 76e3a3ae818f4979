"""find_weights: the layers that a file of any producer holds, as dense weights with their zeros."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial

from torch import Tensor

from ajour.importers.checkpoint import Checkpoint
from ajour.importers.compressed_tensors import compressed_layers, decompress, refuse
from ajour.importers.saved import FORMAT, read_saved
from ajour.layers import SMALLEST_SIDE
from ajour.masks import NNCF, PARAMETRIZATION, PRODUCERS, PRUNE, nncf_masks_in
from ajour.terms.errors import FileError

_EMBEDDING = re.compile(r"(^|\.)(\w*embed\w*|emb|wte|wpe|shared|relative_attention_bias)$")
_RECURRENT = re.compile(r"(^|\.)weight_[ih][hr](_l\d+(_reverse)?)?$")
_EXPERT = re.compile(r"(^|\.)experts\.\d+\.")
_BESIDE = (".row_offsets", ".bitmask", ".compressed", ".shape", "__weight_mma_pruned_p")
_LOST = {
    PRUNE.weight: "the file holds weight_orig without its weight_mask, so this is the weight before pruning",
    PARAMETRIZATION.weight: "a parametrization's mask is not in the file, so this is the weight before pruning; call "
    "the sparsifier's squash_mask() (or parametrize.remove_parametrizations) before saving",
}


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
    refuse(checkpoint.config, str(checkpoint.path))
    packed: list[Weight] = []
    if checkpoint.metadata.get("format") == FORMAT:
        for name, layer in read_saved(checkpoint.path).layers.items():
            packed.append(Weight(name, layer.matrix.shape, layer.matrix.to_dense, source=FORMAT))
    for name, parts in compressed_layers(checkpoint.shapes).items():
        read = partial(decompress, checkpoint, name, parts)
        packed.append(Weight(name, tuple(read().shape), read, source="compressed-tensors"))
    owned = {weight.name for weight in packed}
    found = packed + [
        weight for weight in _stored(checkpoint) if not owned & {weight.name, weight.name.rpartition(".")[0]}
    ]
    return sorted(found, key=lambda weight: [(int(p), "") if p.isdigit() else (-1, p) for p in weight.name.split(".")])


def _stored(checkpoint: Checkpoint) -> Iterator[Weight]:
    """What stands in the file as ordinary tensors, with or without a mask beside it."""
    shapes = checkpoint.shapes
    hooks = nncf_masks_in({name: name for name in shapes})
    masks = {*hooks.values(), *(mask for _, mask, _ in (_beside(name, shapes) for name in shapes) if mask)}
    transposed = _transposed(shapes)
    for name, shape in shapes.items():
        if len(shape) < 2 or shape[0] == 1 or name in masks or name.endswith(_BESIDE):
            continue
        path, mask, source = _beside(name, shapes)
        if name in hooks:
            mask, source = hooks[name], NNCF
        turned = len(shape) == 2 and path.rpartition(".")[2] in transposed
        sides = shape[::-1] if turned else shape if len(shape) == 3 else (shape[0], math.prod(shape[1:]))
        if min(sides[-2:]) < SMALLEST_SIDE:
            continue
        lost = next((note for leaf, note in _LOST.items() if mask is None and _ends(name, leaf)), None)
        kind, reason = _kind(path, shape)
        kind = "Conv1D" if turned else kind
        yield Weight(path, sides, partial(_read, checkpoint, name, mask, turned), kind, source, reason, lost)


def _ends(name: str, leaf: str) -> bool:
    return name == leaf or name.endswith(f".{leaf}")


def _beside(name: str, shapes: Mapping[str, tuple[int, ...]]) -> tuple[str, str | None, str | None]:
    """The layer's path that a weight belongs to, its mask's name and the tool, if a mask stands beside it."""
    for producer in PRODUCERS:
        prefix = name[: len(name) - len(producer.weight)]
        if _ends(name, producer.weight) and shapes.get(prefix + producer.mask) == shapes[name]:
            return prefix.rstrip("."), prefix + producer.mask, producer.name
    leaf = next((leaf for leaf in (*_LOST, "weight") if _ends(name, leaf)), "")
    return name[: len(name) - len(leaf)].rstrip("."), None, None


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


def _read(checkpoint: Checkpoint, name: str, mask: str | None, turned: bool) -> Tensor:
    w = checkpoint[name]
    if mask is not None:
        kept = checkpoint[mask]
        if not bool(((kept == 0) | (kept == 1)).all()):
            raise FileError(f"{checkpoint.path}: {mask} should hold zeros and ones, as a mask beside {name} does")
        w = w * kept.to(w.dtype)
    w = w.reshape(-1, w.shape[-1]) if w.dim() == 3 else w.flatten(1)
    return w.t().contiguous() if turned else w
