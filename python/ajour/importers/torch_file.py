"""Files of torch.save, old and new, as plain containers of tensors that are read from their places when asked for."""

from __future__ import annotations

import math
import os
import struct
import sys
import zipfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from ajour.importers.pickled_names import Name, StoredTensor, UnreadableError
from ajour.importers.unpickling import unpickle
from ajour.terms.errors import FileError

MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of the old layout
_BROKEN = (ValueError, LookupError, TypeError, OverflowError, EOFError, OSError, RuntimeError,
           struct.error, zipfile.BadZipFile)  # fmt: skip


@dataclass
class Storage:
    """Bytes of a file that one or several tensors are views of. offset: None until it is known."""

    dtype: torch.dtype
    nbytes: int
    offset: int | None = None


class TorchFile:
    """contents: what was saved, with a StoredTensor for each tensor; raises FileError for all but tensors in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._storages: dict[str, Storage] = {}
        self._stored = 0  # bytes of them all
        self._shared: dict[int, Tensor] = {}
        try:
            with path.open("rb") as file:
                self._size = os.fstat(file.fileno()).st_size
                new = file.read(4) == b"PK\x03\x04"
                file.seek(0)
                self.contents = self._zip(file) if new else self._legacy(file)
        except UnreadableError as error:
            raise FileError(
                f"{path} holds {error}, not tensors alone: ajour never unpickles them, and nothing of it was run; "
                "if you trust the file, load it yourself and pass the model"
            ) from None
        except _BROKEN as error:
            raise FileError(f"{path} is damaged or no torch file: {_first_line(error)}") from None
        users = Counter(id(tensor.storage) for tensor in {id(t): t for t in tensors_in(self.contents)}.values())
        self._many = {key for key, count in users.items() if count > 1}

    def read(self, tensor: StoredTensor) -> Tensor:
        """The tensor's own values; those that share a storage in the file share it here, too."""
        storage = tensor.storage
        held = self._shared.get(id(storage))
        if held is None:
            held = self._bytes(storage)
            if id(storage) in self._many:
                self._shared[id(storage)] = held
        if not math.prod(tensor.size):
            return torch.empty(tensor.size, dtype=tensor.dtype)
        whole = held[: held.numel() // tensor.dtype.itemsize * tensor.dtype.itemsize].view(tensor.dtype)
        return whole.as_strided(tensor.size, tensor.stride, tensor.offset)

    def close(self) -> None:
        """Nothing is held open."""

    def _bytes(self, storage: Storage) -> Tensor:
        assert storage.offset is not None
        held = torch.empty(storage.nbytes, dtype=torch.uint8)
        if storage.nbytes:
            with self.path.open("rb") as file:
                file.seek(storage.offset)
                if file.readinto(held.numpy().data) != storage.nbytes:
                    raise FileError(f"{self.path} ends too early; it has changed since it was opened")
        return held

    def _storage(self, kind: Any, key: Any, count: Any) -> Storage:
        if not isinstance(kind, Name) or kind.dtype is None or kind.make is not None:
            raise UnreadableError("a storage of an unknown kind")
        if not isinstance(key, str) or type(count) is not int or not 0 <= count < 2**60:
            raise ValueError("a storage's place is damaged")
        nbytes = count * kind.dtype.itemsize
        if nbytes > self._size:
            raise ValueError(f"a storage of {nbytes} bytes is larger than the file")
        if key not in self._storages:
            self._storages[key] = Storage(kind.dtype, nbytes)
            self._stored += nbytes
            if self._stored > self._size:
                raise ValueError("its storages are larger than the file")
        known = self._storages[key]
        if known.dtype != kind.dtype or known.nbytes != nbytes:
            raise ValueError("a storage is described in two ways")
        return known

    def _zip(self, file: IO[bytes]) -> Any:
        with zipfile.ZipFile(file) as archive:
            records = {info.filename: info for info in archive.infolist()}
        top = next(
            (name.removesuffix("data.pkl") for name in records if name.count("/") == 1 and name.endswith("/data.pkl")),
            None,
        )
        if top is None:
            raise ValueError("it holds no data.pkl")
        if f"{top}constants.pkl" in records or any(name.startswith(f"{top}code/") for name in records):
            raise UnreadableError("TorchScript code")
        if f"{top}byteorder" in records and self._record(file, records[f"{top}byteorder"]) != sys.byteorder.encode():
            raise UnreadableError("numbers of another byte order")

        def persistent(place: Any) -> Storage:
            if not isinstance(place, tuple) or len(place) != 5 or place[0] != "storage":
                raise UnreadableError("a persistent id of an unknown kind")
            _, kind, key, _, count = place
            storage = self._storage(kind, key, count)
            if storage.offset is None:
                record = records.get(f"{top}data/{key}")
                if record is None or record.file_size < storage.nbytes:
                    raise ValueError(f"the storage {key[:40]!r} is missing or too short")
                storage.offset = self._place(file, record)
            return storage

        data = self._record(file, records[f"{top}data.pkl"])
        return unpickle(BytesIO(data), len(data), persistent)

    def _place(self, file: IO[bytes], record: zipfile.ZipInfo) -> int:
        """Where a record's bytes begin; torch stores them as they are."""
        if (
            record.compress_type != zipfile.ZIP_STORED
            or record.flag_bits & 1
            or record.compress_size != record.file_size
        ):
            raise ValueError("a record is compressed or encrypted, which torch.save never does")
        file.seek(record.header_offset)
        header = file.read(30)
        if len(header) != 30 or header[:4] != b"PK\x03\x04":
            raise ValueError("a record has no header")
        start: int = record.header_offset + 30 + sum(struct.unpack("<HH", header[26:30]))
        if start < 30 or start + record.file_size > self._size:
            raise ValueError("a record reaches beyond the file")
        return start

    def _record(self, file: IO[bytes], record: zipfile.ZipInfo) -> bytes:
        file.seek(self._place(file, record))
        return file.read(record.file_size)

    def _legacy(self, file: IO[bytes]) -> Any:
        def persistent(place: Any) -> Storage:
            if not isinstance(place, tuple) or len(place) not in (5, 6) or place[0] != "storage":
                kind = place[0] if isinstance(place, tuple) and place and isinstance(place[0], str) else "unknown"
                raise UnreadableError(f"a persistent id of the kind {kind[:40]!r}")
            if len(place) == 6 and place[5] is not None:
                raise UnreadableError("a view of a storage, as torch wrote them before 0.4")
            return self._storage(place[1], place[2], place[4])

        def refuse(place: Any) -> Any:
            raise ValueError("a storage stands where none can")

        magic = unpickle(file, self._size, refuse)
        if magic != MAGIC:
            raise UnreadableError("a pickle that torch.save did not write")
        version, _ = (unpickle(file, self._size, refuse) for _ in range(2))
        if version != 1001:
            raise ValueError("its version is none that torch writes")
        contents = unpickle(file, self._size, persistent)
        keys = unpickle(file, self._size, refuse)
        if not isinstance(keys, list):
            raise ValueError("its list of storages is damaged")
        for key in keys:
            storage = self._storages.get(key) if isinstance(key, str) else None
            count = int.from_bytes(file.read(8), "little")
            if storage is None or storage.offset is not None or count * storage.dtype.itemsize != storage.nbytes:
                raise ValueError("its list of storages is damaged")
            storage.offset = file.tell()
            if storage.offset + storage.nbytes > self._size:
                raise ValueError("it ends too early")
            file.seek(storage.nbytes, os.SEEK_CUR)
        if any(storage.offset is None for storage in self._storages.values()):
            raise ValueError("a storage is missing")
        return contents


def tensors_in(contents: Any) -> Iterator[StoredTensor]:
    """Every tensor, however deep; a container that stands in several places is entered once."""
    waiting, seen = [contents], set()
    while waiting:
        value = waiting.pop()
        if isinstance(value, StoredTensor):
            yield value
        elif isinstance(value, dict | list | tuple) and id(value) not in seen:
            seen.add(id(value))
            waiting.extend(value.values() if isinstance(value, dict) else value)


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0][:200] or type(error).__name__
