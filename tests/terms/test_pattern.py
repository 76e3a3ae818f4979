"""Patterns: frozen, exact in words, and refusing nonsense."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ajour.terms.pattern import NM, Block, Dense, Pattern, Unstructured, parse_pattern

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


def test_patterns_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        NM(2, 4).keep = 3  # type: ignore[misc]
