"""A row table: which kernel serves which numbers of rows, in the one string that an op call carries.

Text form: `3072x768 float32 2:4 | 64 cpu 0:2 | * onednn 2:3 config`. The head is n x k, dtype, pattern; each entry is
"up to this many rows" (`*`: no limit), the kernel's name, the slice of the packed tensors that it reads, and its
configuration if it has one. Entries stand in rising order and the last one is `*`.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

from ajour.terms.errors import PlanError
from ajour.terms.pattern import Pattern, parse_pattern

_NO_LIMIT = 2**62


@dataclass(frozen=True)
class RowEntry:
    """One kernel and the rows that it serves; also what the kernel needs to know of the matrix."""

    kernel: str
    start: int  # of its tensors in `packed`
    stop: int
    config: str
    limit: int | None  # largest number of rows, None: any
    n: int
    k: int
    dtype: str
    pattern: Pattern


@dataclass(frozen=True)
class RowTable:
    """A parsed table; `at(m)` is the entry that serves m rows."""

    n: int
    k: int
    dtype: str
    pattern: Pattern
    entries: tuple[RowEntry, ...]
    limits: tuple[int, ...]
    needs: int  # packed tensors that the entries read

    def at(self, m: int) -> RowEntry:
        """The entry that serves m rows of x."""
        return self.entries[bisect_left(self.limits, m)]

    def __str__(self) -> str:
        parts = [f"{self.n}x{self.k} {self.dtype} {self.pattern}"]
        for e in self.entries:
            limit = "*" if e.limit is None else str(e.limit)
            parts.append(f"{limit} {e.kernel} {e.start}:{e.stop} {e.config}".rstrip())
        return " | ".join(parts)


def make_row_table(
    n: int, k: int, dtype: str, pattern: Pattern, entries: Sequence[tuple[int | None, str, int, int, str]]
) -> RowTable:
    """Builds a table from (limit, kernel, start, stop, config) rows; raises PlanError unless limits rise to None."""
    if n < 0 or k < 0 or any(not 0 <= start < stop for _, _, start, stop, _ in entries):
        raise PlanError(f"a row table needs sizes of at least 0 and spans that are not empty, found {n}x{k}, {entries}")
    for _, kernel, _, _, config in entries:
        if not kernel or " " in kernel or "|" in kernel + config or config != config.strip():
            raise PlanError(f"a row table can't be written with kernel {kernel!r} and configuration {config!r}")
    limits = [_NO_LIMIT if e[0] is None else e[0] for e in entries]
    if not limits or limits[0] < 1 or limits[-1] != _NO_LIMIT or any(a >= b for a, b in pairwise(limits)):
        raise PlanError(f"a row table's limits must rise and end without one, found {[e[0] for e in entries]}")
    rows = tuple(
        RowEntry(kernel, start, stop, config, limit, n, k, dtype, pattern)
        for limit, kernel, start, stop, config in entries
    )
    return RowTable(n, k, dtype, pattern, rows, tuple(limits), max(row.stop for row in rows))


@cache
def parse_row_table(text: str) -> RowTable:
    """The inverse of `str(table)`, remembered; raises PlanError for a malformed text."""
    try:
        head, *rest = text.split(" | ")
        size, dtype, pattern = head.split(" ", 2)
        n, k = (int(side) for side in size.split("x"))
        entries = []
        for part in rest:
            limit, kernel, span, *config = part.split(" ", 3)
            start, stop = (int(side) for side in span.split(":"))
            entries.append((None if limit == "*" else int(limit), kernel, start, stop, config[0] if config else ""))
        table = make_row_table(n, k, dtype, parse_pattern(pattern), entries)
    except ValueError as error:
        raise PlanError(f"{text!r} is no row table: {error}") from None
    if str(table) != text:
        raise PlanError(f"{text!r} is no row table as ajour writes them; expected {str(table)!r}")
    return table
