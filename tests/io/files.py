"""Changes to a written file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor


def rewritten(path: Path, change: Callable[[dict[str, Tensor], dict[str, str]], object]) -> None:
    """Applies `change` to a safetensors file's tensors and metadata."""
    with safe_open(path, "pt") as file:
        metadata, tensors = dict(file.metadata()), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    change(tensors, metadata)
    save_file(tensors, path, metadata)
