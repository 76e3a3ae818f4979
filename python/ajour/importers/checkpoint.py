"""Checkpoints: the named tensors of a file or a Hugging Face folder, read one at a time, without unpickling objects."""

from __future__ import annotations

import json
import pickle
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any, cast

import safetensors
import torch
from torch import Tensor

from ajour.terms.errors import FileError

LARGEST_HEADER = 100_000_000  # bytes; safetensors refuses more
# what torch's restricted unpickler trips over, once its instructions are damaged
_DAMAGED = (
    RuntimeError, EOFError, OSError, ValueError, LookupError, TypeError, AttributeError, AssertionError,
    ArithmeticError, struct.error,
)  # fmt: skip
# where training frameworks put the state_dict inside their checkpoint
NESTED = ("state_dict", "model_state_dict", "model", "module")


@dataclass(frozen=True)
class Entry:
    """A tensor that has not been read yet."""

    shape: tuple[int, ...]
    read: Callable[[], Tensor]


class Checkpoint(Mapping[str, Tensor]):
    """Tensors by name; each is read when it is asked for.

    config: the folder's config.json. metadata: those of a single safetensors file. Both are {} without one.
    shapes: those of all tensors, known without reading them.
    """

    def __init__(
        self, path: Path, config: dict[str, Any], entries: dict[str, Entry], metadata: dict[str, str] | None = None
    ) -> None:
        self.path = path
        self.config = config
        self.metadata = metadata or {}
        self.shapes = {name: entry.shape for name, entry in entries.items()}
        self._entries = entries

    def __getitem__(self, name: str) -> Tensor:
        return self._entries[name].read()

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


def open_checkpoint(path: str | PathLike[str]) -> Checkpoint:
    """A Hugging Face folder, a .safetensors file, or a torch file of tensors alone.

    Raises FileError if it is missing, damaged, of an unknown kind, or would have to be unpickled.
    """
    path = Path(path)
    if path.is_dir():
        return _folder(path)
    if not path.is_file():
        raise FileError(f"{path} does not exist; expected a Hugging Face folder or a checkpoint file")
    entries, metadata = _file(path)
    return Checkpoint(path, {}, entries, metadata)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; raises FileError."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise FileError(f"{path} is no readable JSON: {error}") from None
    if not isinstance(data, dict):
        raise FileError(f"{path}: expected a JSON object, found {type(data).__name__}")
    return data


def _folder(path: Path) -> Checkpoint:
    config = read_json(path / "config.json") if (path / "config.json").is_file() else {}
    entries: dict[str, Entry] = {}
    for shard, names in _shards(path).items():
        if not (path / shard).is_file():
            raise FileError(f"{path / shard} is missing; the folder's index lists it")
        held, _ = _file(path / shard)
        for name in names if names is not None else held:
            if name not in held:
                raise FileError(f"{path / shard}: the tensor {name} is missing; the folder's index lists it here")
            entries[name] = held[name]
    return Checkpoint(path, config, entries)


def _shards(path: Path) -> dict[str, list[str] | None]:
    """File name -> the tensors to take from it, None for all."""
    for stem in ("model.safetensors", "pytorch_model.bin"):
        index = path / f"{stem}.index.json"
        if index.is_file():
            places = read_json(index).get("weight_map")
            if not isinstance(places, dict) or not all(isinstance(shard, str) for shard in places.values()):
                raise FileError(f"{index} has no weight_map from tensors to files")
            shards: dict[str, list[str] | None] = {}
            for name, shard in places.items():
                if Path(shard).name != shard:
                    raise FileError(f"{index}: {shard!r} is no file name of this folder")
                cast("list[str]", shards.setdefault(shard, [])).append(name)
            return shards
        if (path / stem).is_file():
            return {stem: None}
    loose = sorted(file.name for file in path.glob("*.safetensors"))
    if not loose:
        raise FileError(f"{path} holds no *.safetensors and no pytorch_model.bin; expected a Hugging Face folder")
    return dict.fromkeys(loose)


def _file(path: Path) -> tuple[dict[str, Entry], dict[str, str]]:
    """A file's tensors and its metadata; its first bytes tell its kind, as names lie."""
    with path.open("rb") as file:
        start = file.read(9)
    if start[8:] == b"{" and int.from_bytes(start[:8], "little") < LARGEST_HEADER:
        return _safetensors_file(path)
    if start[:4] == b"PK\x03\x04" or start[:1] == b"\x80":
        return _torch_file(path), {}
    raise FileError(f"{path} is neither a safetensors file nor a torch file; its first bytes are {start[:8]!r}")


def open_safetensors(path: Path) -> AbstractContextManager[Any]:
    """safetensors' own lazy reader; raises FileError for a damaged or truncated file."""
    try:
        return cast("AbstractContextManager[Any]", safetensors.safe_open(str(path), framework="pt"))
    except (safetensors.SafetensorError, OSError) as error:
        raise FileError(f"{path} is damaged or no safetensors file: {error}") from None


def _safetensors_file(path: Path) -> tuple[dict[str, Entry], dict[str, str]]:
    def read(name: str) -> Tensor:
        with open_safetensors(path) as file:
            return cast("Tensor", file.get_tensor(name))

    with open_safetensors(path) as file:
        names = list(file.keys())
        entries = {name: Entry(tuple(file.get_slice(name).get_shape()), partial(read, name)) for name in names}
        return entries, dict(file.metadata() or {})


def _torch_file(path: Path) -> dict[str, Entry]:
    try:
        with path.open("rb") as file:  # by name, torch would take a .safetensors for what it is called
            data = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise FileError(
            f"{path} holds pickled objects, not tensors alone, and ajour never unpickles them ({_first_line(error)}); "
            "if you trust the file, load it yourself and pass the model"
        ) from None
    except _DAMAGED as error:
        raise FileError(f"{path} is damaged or no torch file: {_first_line(error)}") from None
    tensors = _state(data)
    if not tensors:
        raise FileError(f"{path} holds no state_dict; expected a dict of tensors, or one under {', '.join(NESTED)}")
    return {name: Entry(tuple(tensor.shape), partial(tensors.__getitem__, name)) for name, tensor in tensors.items()}


def _state(data: object) -> dict[str, Tensor]:
    """The tensors of a state_dict, one level down where a training loop put it there."""
    if not isinstance(data, dict):
        return {}
    for inner in (*(data.get(key) for key in NESTED), data):
        found = {str(k): v for k, v in inner.items() if isinstance(v, Tensor)} if isinstance(inner, dict) else {}
        if found:
            return found
    return {}


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0][:200]
