"""What the text of a command-line argument means; each raises ValueError with a sentence for the one who typed it."""

from __future__ import annotations

import os
from pathlib import Path

import torch

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def parse_shape(text: str) -> tuple[int, ...]:
    """`32x128` -> (32, 128)."""
    sides = text.lower().split("x")
    if not all(side.isdecimal() and int(side) for side in sides):
        raise ValueError(f"{text!r} is no shape; expected positive sizes like 32x128")
    return tuple(map(int, sides))


def parse_rows(text: str) -> list[int] | None:
    """`1,8,64` -> [1, 8, 64]; nothing -> None."""
    counts = text.split(",") if text else []
    if not all(count.strip().isdecimal() and int(count) for count in counts):
        raise ValueError(f"{text!r} is no list of row counts; expected positive ones like 1,8,64")
    return [int(count) for count in counts] or None


def parse_dtype(text: str) -> torch.dtype | None:
    """A name as torch has it; nothing -> None."""
    if text and text not in DTYPES:
        raise ValueError(f"{text!r} is no dtype of a format here; expected one of {', '.join(DTYPES)}")
    return DTYPES[text] if text else None


def parse_device(text: str) -> torch.device:
    """`cpu`, `cuda` or `cuda:1`, whether or not this machine has it."""
    kind, colon, index = text.partition(":")
    if kind not in ("cpu", "cuda") or (colon and not (kind == "cuda" and index.isdecimal())):
        raise ValueError(f"{text!r} is no device that ajour runs on; expected cpu, cuda or cuda:1")
    return torch.device(text)


def check_output(path: Path) -> Path:
    """The path itself, if a file can be written there."""
    if path.is_dir():
        raise ValueError(f"{path} is a folder; expected the name of a file to write")
    if not path.parent.is_dir():
        raise ValueError(f"the folder {path.parent} does not exist; make it first")
    if not os.access(path.parent, os.W_OK):
        raise ValueError(f"the folder {path.parent} is not writable")
    return path
