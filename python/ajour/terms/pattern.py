"""Patterns: where a weight's zeros are."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Union


@dataclass(frozen=True)
class Dense:
    """No zeros worth naming."""

    def __str__(self) -> str:
        return "dense"


@dataclass(frozen=True)
class NM:
    """Of every `group` neighbours along a row (in-features), at most `keep` are non-zero.

    `keep` counts what is *kept*: 2:4 is `NM(keep=2, group=4)`, and 1:4 keeps one weight of four. Raises ValueError
    unless 1 <= keep < group <= 32.
    """

    keep: int
    group: int

    def __post_init__(self) -> None:
        if not 1 <= self.keep < self.group <= 32:
            raise ValueError(f"an N:M pattern needs 1 <= keep < group <= 32, found {self.keep}:{self.group}")

    def __str__(self) -> str:
        return f"{self.keep}:{self.group}"


@dataclass(frozen=True)
class Block:
    """The weight is cut into `rows` x `cols` blocks (out-features x in-features), and most of them are all zero.

    Raises ValueError unless both sides are in 1..256 and the block is more than one element.
    """

    rows: int
    cols: int

    def __post_init__(self) -> None:
        if not (1 <= self.rows <= 256 and 1 <= self.cols <= 256) or self.rows * self.cols == 1:
            raise ValueError(f"a block needs sides in 1..256 and more than one element, found {self.rows}x{self.cols}")

    def __str__(self) -> str:
        return f"block {self.rows}x{self.cols}"


@dataclass(frozen=True)
class Unstructured:
    """Zeros anywhere."""

    def __str__(self) -> str:
        return "unstructured"


Pattern = Union[Dense, NM, Block, Unstructured]

_NM = re.compile(r"(\d+):(\d+)")
_BLOCK = re.compile(r"block (\d+)x(\d+)")


def parse_pattern(text: str) -> Pattern:
    """The inverse of `str(pattern)`; raises ValueError for anything else."""
    if text == "dense":
        return Dense()
    if text == "unstructured":
        return Unstructured()
    if found := _NM.fullmatch(text):
        return NM(int(found[1]), int(found[2]))
    if found := _BLOCK.fullmatch(text):
        return Block(int(found[1]), int(found[2]))
    raise ValueError(f"{text!r} is no pattern; expected 'dense', 'unstructured', 'KEEP:GROUP' or 'block ROWSxCOLS'")
