"""ajour's own file: one safetensors file of canonical tensors, with a description of the layers in its metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from torch import Tensor

from ajour.formats import SparseMatrix
from ajour.importers.safetensors_file import open_safetensors
from ajour.ops import LINEAR_OPS
from ajour.terms.errors import FileError, FormatError
from ajour.terms.pattern import parse_pattern
from ajour.terms.problem import ACTIVATIONS

FORMAT = "ajour"
VERSION = 1


@dataclass(frozen=True)
class SavedLayer:
    """A converted layer: its matrix, validated, and its bias [n]."""

    op: str
    matrix: SparseMatrix
    bias: Tensor | None
    activation: str
    trainable: bool

    def describe(self) -> dict[str, Any]:
        """What the metadata holds of it; `_read_layer` reads that."""
        return {
            "op": self.op,
            "pattern": str(self.matrix.pattern),
            "shape": list(self.matrix.shape),
            "dtype": str(self.matrix.dtype).removeprefix("torch."),
            "bias": self.bias is not None,
            "activation": self.activation,
            "trainable": self.trainable,
        }


@dataclass(frozen=True)
class Saved:
    """A read file.

    layers: the converted ones by name. tensors: all others of the state_dict, each tied one under its first name.
    ties: further name -> first name. buffers: what the state_dict leaves out, for skeletons on the meta device.
    plan: the plan's JSON, "" without one. masks: parameter -> (bits, shape) of a mask that training held it under.
    """

    path: Path
    layers: dict[str, SavedLayer]
    tensors: dict[str, Tensor]
    ties: dict[str, str]
    buffers: dict[str, Tensor]
    plan: str
    masks: dict[str, tuple[Tensor, list[int]]]


def describe(saved: Saved) -> dict[str, str]:
    """The metadata of a file, every value JSON but format and version."""
    masks = {name: shape for name, (_, shape) in saved.masks.items()}
    return {
        "format": FORMAT,
        "version": str(VERSION),
        "layers": json.dumps({name: layer.describe() for name, layer in saved.layers.items()}),
        "ties": json.dumps(saved.ties),
        "buffers": json.dumps(sorted(saved.buffers)),
        "plan": saved.plan,
    } | ({"masks": json.dumps(masks)} if masks else {})


def mask_key(name: str) -> str:
    """The tensor in the file that holds the mask of a parameter."""
    return f"{name}:mask"


def read_saved(path: str | PathLike[str]) -> Saved:
    """Reads and validates a whole file, every index included; raises FileError naming what is wrong with it."""
    path = Path(path)
    if not path.is_file():
        raise FileError(f"{path} does not exist; expected a file that ajour.save wrote")
    with open_safetensors(path) as file:
        metadata = check_metadata(path, file.metadata() or {})
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    described = _json(path, metadata, "layers", dict)
    layers = {name: _read_layer(path, name, entry, tensors) for name, entry in described.items()}
    ties = _json(path, metadata, "ties", dict)
    for name, first in ties.items():
        if first not in tensors or name in tensors:
            raise FileError(f"{path}: {name!r} is tied to {first!r}, which the file does not hold once")
    names = _json(path, metadata, "buffers", list)
    for name in names:
        if name not in tensors or names.count(name) > 1:
            raise FileError(f"{path}: the file does not hold the buffer {name!r} once")
    buffers = {name: tensors.pop(name) for name in names}
    masks = _read_masks(path, metadata, tensors)
    return Saved(path, layers, tensors, ties, buffers, metadata.get("plan", ""), masks)


def check_metadata(path: Path, metadata: Mapping[str, str]) -> Mapping[str, str]:
    """The metadata, if they are of this format and a version that this ajour reads; else raises FileError."""
    if metadata.get("format") != FORMAT:
        raise FileError(
            f"{path} was not written by ajour.save (its format is {metadata.get('format', 'not named')!r}); load it "
            "into its model by its own means, then call ajour.convert"
        )
    version = metadata.get("version", "")
    digits = version.isascii() and version.isdigit() and len(version) < 10  # Python reads no number of 5000
    if not digits or int(version) > VERSION or int(version) < 1:
        raise FileError(
            f"{path} is of version {version[:40]!r}, this ajour reads version {VERSION}; update ajour to read it"
        )
    return metadata


def _read_masks(
    path: Path, metadata: Mapping[str, str], tensors: dict[str, Tensor]
) -> dict[str, tuple[Tensor, list[int]]]:
    """Takes the masks out of `tensors`; files of before there were any have none."""
    shapes = _json(path, metadata, "masks", dict) if "masks" in metadata else {}
    for name, shape in shapes.items():
        if mask_key(name) not in tensors:
            raise FileError(f"{path}: the file does not hold the mask of {name!r}")
        if not (isinstance(shape, list) and all(type(size) is int and 0 <= size < 2**31 for size in shape)):
            raise FileError(f"{path}: the mask of {name!r} should have a shape, found {shape!r}")
    return {name: (tensors.pop(mask_key(name)), shape) for name, shape in shapes.items()}


def _json(path: Path, metadata: Mapping[str, str], key: str, kind: type[dict[str, Any]] | type[list[Any]]) -> Any:
    try:
        value = json.loads(metadata.get(key, ""))
    except (ValueError, RecursionError) as error:
        raise FileError(f"{path}: the metadata {key!r} are missing or no JSON: {error}") from None
    if not isinstance(value, kind):
        raise FileError(f"{path}: the metadata {key!r} should be a {kind.__name__}, found {type(value).__name__}")
    held = [*value, *value.values()] if isinstance(value, dict) else list(value)
    if key in ("ties", "buffers") and not all(isinstance(name, str) for name in held):
        raise FileError(f"{path}: the metadata {key!r} should hold names of tensors")
    return value


def _read_layer(path: Path, name: str, entry: Any, tensors: dict[str, Tensor]) -> SavedLayer:
    """Takes the layer's tensors out of `tensors`."""
    where = f"{path}: layer {name!r}"
    keys = {"op", "pattern", "shape", "dtype", "bias", "activation", "trainable"}
    if not isinstance(entry, dict) or set(entry) != keys:
        raise FileError(f"{where}: expected {', '.join(sorted(keys))}, found {entry!r}")
    op, shape = LINEAR_OPS.get(str(entry["op"])), entry["shape"]
    if op is None:
        raise FileError(f"{where}: unknown op {entry['op']!r}; this ajour has {', '.join(LINEAR_OPS)}")
    if not (isinstance(shape, list) and len(shape) == 2 and all(type(s) is int and 0 <= s < 2**31 for s in shape)):
        raise FileError(f"{where}: shape should be two sizes, found {shape!r}")
    if (
        entry["activation"] not in ACTIVATIONS
        or type(entry["trainable"]) is not bool
        or type(entry["bias"]) is not bool
    ):
        raise FileError(f"{where}: activation, trainable or bias is none that a layer can have: {entry!r}")
    prefix = f"{name}." if name else ""
    bias = tensors.get(f"{prefix}bias")
    if entry["bias"] and bias is None:
        raise FileError(f"{where}: its bias is missing")
    held = {part: tensors[prefix + part] for part in op.matrix.NAMES if prefix + part in tensors}
    try:
        matrix = op.matrix.from_tensors(held, parse_pattern(str(entry["pattern"])), (shape[0], shape[1]))
    except (FormatError, ValueError) as error:
        raise FileError(f"{where}: {error}") from None
    if str(matrix.dtype) != f"torch.{entry['dtype']}":
        raise FileError(f"{where}: its values should be {entry['dtype']}, found {matrix.dtype}")
    if bias is not None and (tuple(bias.shape) != (shape[0],) or bias.dtype != matrix.dtype or not entry["bias"]):
        raise FileError(
            f"{where}: expected a bias of {matrix.dtype} ({shape[0]},), found {bias.dtype} {tuple(bias.shape)}"
        )
    for part in (*op.matrix.NAMES, "bias"):
        tensors.pop(prefix + part, None)
    return SavedLayer(op.name, matrix, bias, entry["activation"], entry["trainable"])
