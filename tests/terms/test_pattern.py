"""Patterns: frozen, exact in words, and refusing nonsense."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ajour.terms.errors import PatternError
from ajour.terms.pattern import NM, Block, Dense, Pattern, Unstructured, as_pattern, parse_pattern

NMS = st.integers(2, 32).flatmap(lambda group: st.builds(NM, st.integers(1, group - 1), st.just(group)))
SIDE = st.integers(1, 256)
BLOCKS = st.tuples(SIDE, SIDE).filter(lambda sides: sides != (1, 1)).map(lambda sides: Block(*sides))


@given(st.one_of(NMS, BLOCKS, st.just(Dense()), st.just(Unstructured())))
def test_parse_is_the_inverse_of_str(pattern: Pattern) -> None:
    assert parse_pattern(str(pattern)) == pattern
    assert hash(parse_pattern(str(pattern))) == hash(pattern)


def test_patterns_read_as_people_write_them() -> None:
    assert [str(p) for p in (NM(2, 4), Block(32, 16), Unstructured(), Dense())] == [
        "2:4",
        "block 32x16",
        "unstructured",
        "dense",
    ]


def test_nm_counts_what_is_kept() -> None:
    assert NM(keep=1, group=4) == parse_pattern("1:4")
    assert parse_pattern("1:4").keep == 1


@pytest.mark.parametrize(("keep", "group"), [(0, 4), (4, 4), (5, 4), (-1, 4), (1, 33), (1, 1), (2, 64)])
def test_an_impossible_nm_is_refused(keep: int, group: int) -> None:
    with pytest.raises(ValueError, match=f"1 <= keep < group <= 32, found {keep}:{group}"):
        NM(keep, group)


@pytest.mark.parametrize(("rows", "cols"), [(0, 4), (4, 0), (257, 1), (1, 257), (1, 1), (-4, 4)])
def test_an_impossible_block_is_refused(rows: int, cols: int) -> None:
    with pytest.raises(ValueError, match=f"sides in 1..256 and more than one element, found {rows}x{cols}"):
        Block(rows, cols)


@pytest.mark.parametrize(
    "text", ["", "2:4 ", " 2:4", "2-4", "4:2", "block 32", "block 1x1", "Dense", "block 8x300", "2:4:8"]
)
def test_anything_else_is_no_pattern(text: str) -> None:
    with pytest.raises(ValueError, match=r"is no pattern|an N:M pattern needs|a block needs"):
        parse_pattern(text)


@pytest.mark.parametrize(
    "make", [lambda: NM(2.0, 4), lambda: NM("2", 4), lambda: Block(1.5, 1), lambda: Block(None, 2)]
)
def test_a_pattern_of_no_whole_numbers_is_refused(make: Callable[[], Pattern]) -> None:
    with pytest.raises(PatternError, match="takes whole numbers, found"):
        make()


def test_a_pattern_or_its_name_is_a_pattern() -> None:
    assert as_pattern("2:4") == as_pattern(NM(2, 4)) == NM(2, 4)
    for other in (5, None, NM):
        with pytest.raises(PatternError, match="expected a pattern or its name, like '2:4' or 'block 32x32', found"):
            as_pattern(other)


def test_patterns_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        NM(2, 4).keep = 3  # type: ignore[misc]
