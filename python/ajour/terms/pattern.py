"""Patterns: where a weight's zeros are."""

from __future__ import annotations

import operator
import re
from dataclasses import dataclass
from typing import Union

from ajour.terms.errors import PatternError


@dataclass(frozen=True)
class Dense:
    """No zeros worth naming."""

    def __str__(self) -> str:
        return "dense"


@dataclass(frozen=True)
class NM:
    """Of every `group` neighbours along a row (in-features), at most `keep` are non-zero.

    `keep` counts what is *kept*: 2:4 is `NM(keep=2, group=4)`, and 1:4 keeps one weight of four. Raises
    PatternError unless 1 <= keep < group <= 32.
    """

    keep: int
    group: int

    def __post_init__(self) -> None:
        _check_whole(self, self.keep, self.group)
        if not 1 <= self.keep < self.group <= 32:
            raise PatternError(f"an N:M pattern needs 1 <= keep < group <= 32, found {self.keep}:{self.group}")

    def __str__(self) -> str:
        return f"{self.keep}:{self.group}"


@dataclass(frozen=True)
class Block:
    """The weight is cut into `rows` x `cols` blocks (out-features x in-features), and most of them are all zero.

    Raises PatternError unless both sides are in 1..256 and the block is more than one element.
    """

    rows: int
    cols: int

    def __post_init__(self) -> None:
        _check_whole(self, self.rows, self.cols)
        if not (1 <= self.rows <= 256 and 1 <= self.cols <= 256) or self.rows * self.cols == 1:
            found = f"{self.rows}x{self.cols}"
            raise PatternError(f"a block needs sides in 1..256 and more than one element, found {found}")

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


def _check_whole(pattern: object, *numbers: object) -> None:
    try:
        for number in numbers:
            operator.index(number)  # type: ignore[arg-type]
    except TypeError:
        found = ", ".join(map(repr, numbers))
        raise PatternError(f"{type(pattern).__name__} takes whole numbers, found {found}") from None


def as_pattern(given: object) -> Pattern:
    """A pattern, or what its name means; raises PatternError for anything else."""
    return given if isinstance(given, (Dense, NM, Block, Unstructured)) else parse_pattern(given)


def parse_pattern(text: object) -> Pattern:
    """The inverse of `str(pattern)`; raises PatternError for anything else."""
    if not isinstance(text, str):
        raise PatternError(f"expected a pattern or its name, like '2:4' or 'block 32x32', found {text!r}")
    if text == "dense":
        return Dense()
    if text == "unstructured":
        return Unstructured()
    if found := _NM.fullmatch(text):
        return NM(int(found[1]), int(found[2]))
    if found := _BLOCK.fullmatch(text):
        return Block(int(found[1]), int(found[2]))
    raise PatternError(f"{text!r} is no pattern; expected 'dense', 'unstructured', 'KEEP:GROUP' or 'block ROWSxCOLS'")
