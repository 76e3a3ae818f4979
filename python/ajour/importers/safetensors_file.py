"""A safetensors file, whose tensors are read one at a time and stay mapped only while it is open."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, cast

import safetensors
from torch import Tensor

from ajour.terms.errors import FileError

LARGEST_HEADER = 100_000_000  # bytes; safetensors refuses more


class SafetensorsFile:
    """shapes and metadata are known without reading a tensor; raises FileError for a damaged or truncated file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._open: Any = None
        with open_safetensors(path) as file:
            names = list(file.keys())
            self.shapes = {name: tuple(file.get_slice(name).get_shape()) for name in names}
            self.metadata: dict[str, str] = dict(file.metadata() or {})

    def read(self, name: str) -> Tensor:
        """A tensor that shares the file's mapped memory."""
        if self._open is None:
            self._open = open_safetensors(self.path).__enter__()
        try:
            return cast("Tensor", self._open.get_tensor(name))
        except (safetensors.SafetensorError, AttributeError, RuntimeError, TypeError, ValueError) as error:
            raise FileError(f"{self.path}: the tensor {name!r} can't be read: {error}") from None

    def close(self) -> None:
        """Lets go of the mapping; tensors that were read keep theirs until they go."""
        if self._open is not None:
            self._open.__exit__(None, None, None)
            self._open = None


def open_safetensors(path: Path) -> AbstractContextManager[Any]:
    """safetensors' own lazy reader; raises FileError for a damaged or truncated file."""
    try:
        return cast("AbstractContextManager[Any]", safetensors.safe_open(str(path), framework="pt"))
    except (safetensors.SafetensorError, OSError) as error:
        raise FileError(f"{path} is damaged or no safetensors file: {error}") from None
