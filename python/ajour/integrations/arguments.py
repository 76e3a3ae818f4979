"""What the text of a command-line argument means; each raises ValueError with a sentence for the one who typed it."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from ajour.roofline.facts import named
from ajour.terms.errors import PlanError

LONGEST = 3600.0  # seconds
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def parse_shape(text: str) -> tuple[int, ...]:
    """`32x128` -> (32, 128)."""
    sides = text.lower().split("x")
    if not all(side.isdecimal() and int(side) for side in sides):
        raise ValueError(f"{text!r} is no shape; expected positive sizes like 32x128")
    return tuple(map(int, sides))


def parse_shapes(texts: list[str] | None) -> list[tuple[int, ...]]:
    """["1x16", "8x32"] -> [(1, 16), (8, 32)], each once; nothing -> []."""
    return list(dict.fromkeys(parse_shape(text) for text in texts or []))


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


def parse_known_device(text: str) -> torch.device | str:
    """`cpu`, `cuda` or `cuda:1`, or the name of a device whose facts are known, like `H100 SXM`."""
    if text.partition(":")[0] in ("cpu", "cuda"):
        return parse_device(text)
    try:
        return named(text).name
    except PlanError as error:
        raise ValueError(str(error)) from None


def parse_seconds(value: float) -> float:
    """A time to measure for."""
    if not 0 < value <= LONGEST:
        raise ValueError(f"expected 0 to {LONGEST:g} seconds for each size, found {value:g}")
    return value


def check_input(path: Path, remedy: str) -> Path:
    """The path itself, if there is such a file; else the sentence ends with the remedy."""
    if not path.is_file():
        raise ValueError(f"{path} is {'a folder' if path.is_dir() else 'no file'}; {remedy}")
    return path


def make_folder(path: Path) -> Path:
    """The path itself, if a file can be written there, in a folder that is made."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"the folder {path.parent} can't be made: {error.strerror}") from None
    return check_output(path)


def check_output(path: Path) -> Path:
    """The path itself, if a file can be written there."""
    if path.is_dir():
        raise ValueError(f"{path} is a folder; expected the name of a file to write")
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is a device or a pipe; expected the name of a file to write")
    if not path.parent.is_dir():
        raise ValueError(f"the folder {path.parent} does not exist; make it first")
    if not os.access(path.parent, os.W_OK):
        raise ValueError(f"the folder {path.parent} is not writable")
    return path
