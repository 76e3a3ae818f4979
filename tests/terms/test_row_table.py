"""Row tables: one line that says which kernel serves which rows."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ajour.terms.errors import PlanError
from ajour.terms.pattern import NM, Block, Unstructured
from ajour.terms.row_table import make_row_table, parse_row_table

TEXT = "3072x768 float32 2:4 | 64 cpu 0:2 | 512 triton 0:2 m16n64 w4 | * onednn 2:3"


def test_the_documented_text_is_read_as_documented() -> None:
    table = parse_row_table(TEXT)
    assert (table.n, table.k, table.dtype, table.pattern, table.needs) == (3072, 768, "float32", NM(2, 4), 3)
    assert [(e.limit, e.kernel, e.start, e.stop, e.config) for e in table.entries] == [
        (64, "cpu", 0, 2, ""),
        (512, "triton", 0, 2, "m16n64 w4"),
        (None, "onednn", 2, 3, ""),
    ]
    assert all((e.n, e.k, e.dtype, e.pattern) == (3072, 768, "float32", NM(2, 4)) for e in table.entries)
    assert str(table) == TEXT


@pytest.mark.parametrize(
    ("rows", "kernel"), [(1, "cpu"), (64, "cpu"), (65, "triton"), (512, "triton"), (513, "onednn"), (10**12, "onednn")]
)
def test_a_limit_is_the_last_row_count_that_it_serves(rows: int, kernel: str) -> None:
    assert parse_row_table(TEXT).at(rows).kernel == kernel


WORD = st.from_regex(r"[a-z_][a-z0-9_]{0,8}", fullmatch=True)
ENTRY = st.tuples(WORD, st.integers(0, 9), st.integers(1, 6), st.one_of(st.just(""), WORD))


@given(
    st.lists(st.integers(1, 10**6), unique=True, max_size=4).map(sorted).flatmap(
        lambda limits: st.tuples(*(st.tuples(st.just(limit), ENTRY) for limit in [*limits, None]))
    ),
    st.sampled_from([NM(2, 4), Block(32, 16), Unstructured()]),
    st.integers(0, 9999),
    st.integers(0, 9999),
)  # fmt: skip
def test_parse_is_the_inverse_of_str(rows, pattern, n, k) -> None:  # type: ignore[no-untyped-def]
    entries = [(limit, kernel, start, start + size, config) for limit, (kernel, start, size, config) in rows]
    table = make_row_table(n, k, "bfloat16", pattern, entries)
    assert parse_row_table(str(table)) == table
    assert table.needs == max(start + size for _, (_, start, size, _) in rows)


def test_a_text_is_parsed_once() -> None:
    assert parse_row_table(TEXT) is parse_row_table("".join(TEXT))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "3072x768 float32 2:4",
        "3072x768 float32 2:4 | 64 cpu 0:2",
        "3072x768 float32 2:4 | * cpu 0:2 | 64 cpu 0:2",
        "3072x768 float32 2:4 | 64 cpu 0:2 | 64 cpu 0:2 | * cpu 0:2",
        "3072x768 float32 2:4 | 0 cpu 0:2 | * cpu 0:2",
        "3072x768 float32 2:4 | -1 cpu 0:2 | * cpu 0:2",
        "3072x768 float32 2:4 | * cpu 2:0",
        "3072x768 float32 2:4 | * cpu 2:2",
        "3072x768 float32 2:4 | * cpu -1:2",
        "3072x768 float32 2:4 | * cpu",
        "3072x768 float32 2:4 | *  0:2",
        "3072x768 float32 4:2 | * cpu 0:2",
        "3072 float32 2:4 | * cpu 0:2",
        "-3072x768 float32 2:4 | * cpu 0:2",
        "3072x768 float32 2:4 | * cpu 0:2 ",
        "3072x768 float32 2:4 | * cpu 00:2",
        "3_072x768 float32 2:4 | * cpu 0:2",
    ],
)
def test_a_malformed_text_is_refused(text: str) -> None:
    with pytest.raises(PlanError, match=r"row table"):
        parse_row_table(text)


def test_a_table_must_end_without_a_limit() -> None:
    with pytest.raises(PlanError, match=r"limits must rise and end without one, found \[64, 8\]"):
        make_row_table(4, 4, "float32", NM(2, 4), [(64, "cpu", 0, 2, ""), (8, "cpu", 0, 2, "")])


@pytest.mark.parametrize(("kernel", "config"), [("", ""), ("c pu", ""), ("c|pu", ""), ("cpu", "a | b"), ("cpu", "a ")])
def test_a_name_that_could_not_be_read_back_is_refused(kernel: str, config: str) -> None:
    with pytest.raises(PlanError, match="a row table can't be written with kernel"):
        make_row_table(4, 4, "float32", NM(2, 4), [(None, kernel, 0, 2, config)])
