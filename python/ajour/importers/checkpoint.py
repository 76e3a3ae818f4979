"""Checkpoints: the named tensors of a file or a Hugging Face folder, read one at a time; nothing in them ever runs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Protocol, cast

from torch import Tensor

from ajour.importers import lt_sft, r_amt
from ajour.importers.pickled_names import StoredTensor
from ajour.importers.safetensors_file import LARGEST_HEADER, SafetensorsFile
from ajour.importers.torch_file import TorchFile
from ajour.terms.errors import FileError

# where training frameworks put the state_dict inside their checkpoint
NESTED = ("state_dict", "model_state_dict", "model", "module")
# what a folder's one file may be called, with `.index.json` where it is a list of shards
_STEMS = (
    "model.safetensors",
    "pytorch_model.bin",
    "adapter_model.safetensors",
    "adapter_model.bin",
    "pytorch_diff.bin",
)


class _File(Protocol):
    def read(self, key: Any) -> Tensor: ...
    def close(self) -> None: ...


@dataclass(frozen=True)
class Entry:
    """A tensor that has not been read yet: `key` is what its file knows it by."""

    shape: tuple[int, ...]
    file: _File
    key: Any


@dataclass(frozen=True)
class Contents:
    """What a torch file holds under its state_dict's names, values that are no tensors too."""

    file: TorchFile
    state: dict[str, Any]


class Checkpoint(Mapping[str, Tensor]):
    """Tensors by name; each is read when it is asked for, and the file of one shard is open at a time.

    config:   the folder's config.json, {} without one.
    metadata: those of a single safetensors file, else {}.
    contents: what a single torch file holds, else None.
    shapes:   those of all tensors, known without reading them.
    nbytes:   of all files, None in memory.
    mapped:   whether what is read shares memory with a file or a caller.
    """

    def __init__(
        self,
        path: Path,
        entries: Mapping[str, Entry],
        *,
        config: Mapping[str, Any] | None = None,
        metadata: Mapping[str, str] | None = None,
        contents: Contents | None = None,
        nbytes: int | None = None,
    ) -> None:
        self.path, self.config, self.metadata, self.contents = path, config or {}, metadata or {}, contents
        self.nbytes = nbytes
        self.mapped = not all(isinstance(entry.file, TorchFile) for entry in entries.values())
        self.shapes = {name: entry.shape for name, entry in entries.items()}
        self._entries = entries
        self._current: _File | None = None

    def __getitem__(self, name: str) -> Tensor:
        entry = self._entries[name]
        if self._current is not entry.file:
            self.close()
            self._current = entry.file
        return entry.file.read(entry.key)

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def close(self) -> None:
        """Lets go of the shard that was read last; reading goes on where it is asked for more."""
        if self._current is not None:
            self._current.close()
            self._current = None


class _Memory:
    """Tensors that are in memory already."""

    def read(self, key: Tensor) -> Tensor:
        return key.detach()

    def close(self) -> None: ...


def open_checkpoint(path: str | PathLike[str]) -> Checkpoint:
    """A Hugging Face folder, a .safetensors file, or a torch file of tensors and plain containers.

    Raises FileError if it is missing, damaged, of an unknown kind, or holds anything else.
    """
    path = Path(path)
    if path.is_dir():
        return _folder(path)
    if not path.is_file():
        raise FileError(f"{path} does not exist; expected a Hugging Face folder or a checkpoint file")
    return _file(path)


def in_memory(tensors: Mapping[str, Any]) -> Checkpoint:
    """The same for a state_dict, or masks by name; what is no tensor in it is left out."""
    memory = _Memory()
    entries = {str(k): Entry(tuple(v.shape), memory, v) for k, v in tensors.items() if isinstance(v, Tensor)}
    if not entries:
        raise FileError("the mapping holds no tensor; expected a state_dict, or masks by the names of parameters")
    return Checkpoint(Path("the mapping"), entries)


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
    shards = _shards(path)
    contents, nbytes = None, 0
    for shard, names in shards.items():
        if not (path / shard).is_file():
            raise FileError(f"{path / shard} is missing; the folder's index lists it")
        held = _file(path / shard)
        contents = held.contents if len(shards) == 1 else None
        nbytes += held.nbytes or 0
        for name in names if names is not None else held:
            if name not in held:
                raise FileError(f"{path / shard}: the tensor {name} is missing; the folder's index lists it here")
            if name in entries:
                raise FileError(f"{path} holds the tensor {name} in {shard} and in another file; keep one of them")
            entries[name] = held._entries[name]
    return Checkpoint(path, entries, config=config, contents=contents, nbytes=nbytes)


def _shards(path: Path) -> dict[str, list[str] | None]:
    """File name -> the tensors to take from it, None for all."""
    for stem in _STEMS:
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


def _file(path: Path) -> Checkpoint:
    """A file; its first bytes tell its kind, as names lie."""
    with path.open("rb") as file:
        start = file.read(9)
    if start[8:] == b"{" and int.from_bytes(start[:8], "little") < LARGEST_HEADER:
        held = SafetensorsFile(path)
        entries = {name: Entry(shape, held, name) for name, shape in held.shapes.items()}
        return Checkpoint(path, entries, metadata=held.metadata, nbytes=path.stat().st_size)
    if start[:4] == b"PK\x03\x04" or start[:1] == b"\x80":
        saved = TorchFile(path)
        state = _state(saved.contents)
        if not state:
            raise FileError(f"{path} holds no state_dict; expected a dict of tensors, or one under {', '.join(NESTED)}")
        entries = {name: Entry(t.size, saved, t) for name, t in state.items() if isinstance(t, StoredTensor)}
        return Checkpoint(path, entries, contents=Contents(saved, state), nbytes=path.stat().st_size)
    raise FileError(f"{path} is neither a safetensors file nor a torch file; its first bytes are {start[:8]!r}")


def _state(data: object) -> dict[str, Any]:
    """The state_dict, one level down where a training loop put it there; {} if nothing in there is weights or masks."""
    if not isinstance(data, dict):
        return {}
    for inner in (*(data.get(key) for key in NESTED), data):
        if isinstance(inner, dict):
            named = {str(key): value for key, value in inner.items()}
            tensors = any(isinstance(value, StoredTensor) for value in named.values())
            if tensors or r_amt.is_one(named) or lt_sft.is_one(named):
                return named
    return {}
