"""Two result files, row by row: what became faster or slower, what is new, and whether they can be compared at all."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from benchmarks.results import Result

Row = dict[str, Any]
# what a row was measured on; everything else in it is what was measured
KEYS = (
    "op", "model", "product", "pattern", "density", "mask", "kernel", "config", "shape", "m",
    "n", "k", "batch", "tokens", "dtype", "mode", "threads",
)  # fmt: skip
FACTS = ("name", "sm", "cpu", "torch", "triton", "cuda", "driver", "power_limit", "clocks")


@dataclass(frozen=True)
class Change:
    """One row in both files. ratio: old / new time, above 1 for faster; dense: the same of the dense beside it."""

    key: tuple[Any, ...]
    new: Row
    old: Row

    @property
    def ratio(self) -> float:
        return float(self.old["sparse_us"] / self.new["sparse_us"])

    @property
    def dense(self) -> float | None:
        both = (self.old.get("dense_us"), self.new.get("dense_us"))
        return both[0] / both[1] if all(both) else None

    @property
    def differs(self) -> bool:
        """Whether the times differ by more than the wider spread (a spread is a share of the median)."""
        widest = max((row.get("spread") or 0.0) * row["sparse_us"] for row in (self.new, self.old))
        return abs(self.new["sparse_us"] - self.old["sparse_us"]) > widest


@dataclass(frozen=True)
class Comparison:
    """changes: the rows of both; missing: keys of the old file alone, new: of the new one alone."""

    changes: list[Change]
    missing: list[tuple[Any, ...]]
    new: list[tuple[Any, ...]]


def key(row: Row) -> tuple[Any, ...]:
    """What a row is of."""
    return tuple(row.get(name) for name in KEYS)


def join(new: Iterable[Row], old: Iterable[Row]) -> Comparison:
    """The timed rows of both, by their keys; the last of several rows with one key counts."""
    mine, theirs = ({key(row): row for row in rows if row.get("sparse_us")} for rows in (new, old))
    both = [Change(each, mine[each], theirs[each]) for each in mine if each in theirs]
    return Comparison(
        both, [each for each in theirs if each not in mine], [each for each in mine if each not in theirs]
    )


def different_device(new: Result, old: Result) -> list[str]:
    """A sentence for each fact of the devices in which the two differ."""
    pairs = [(name, new["device"].get(name), old["device"].get(name)) for name in FACTS]
    return [f"{name}: {mine} now, {other} before" for name, mine, other in pairs if mine != other]


def compare(new: Result, old: Result) -> Group:
    """The comparison as people read it: rows that differ, the slowest first, and counts of all others."""
    found = join(new["rows"], old["rows"])
    differing = sorted((each for each in found.changes if each.differs), key=lambda each: each.ratio)
    parts: list[Any] = []
    if facts := different_device(new, old):
        parts.append(Text("NOT THE SAME DEVICE OR SOFTWARE: " + "; ".join(facts), style="bold red"))
    if differing:
        parts.append(_table(differing))
    faster = sum(each.ratio > 1 for each in differing)
    drift = [each.dense for each in found.changes if each.dense is not None]
    parts.append(
        Text(
            f"{len(found.changes)} rows in both: {faster} faster, {len(differing) - faster} slower, "
            f"{len(found.changes) - len(differing)} no difference; {len(found.missing)} missing, {len(found.new)} new"
            + (f"; dense itself: {median(drift):.2f}x in the median" if drift else "")
        )
    )
    return Group(*parts)


def _table(changes: Iterable[Change]) -> Table:
    table = Table(title="rows that differ by more than their spread", box=None, padding=(0, 1, 0, 0))
    for column in ("", "before", "now", "ratio", "dense"):
        table.add_column(column, justify="left" if not column else "right", overflow="fold")
    for each in changes:
        told = " ".join(str(part) for part in each.key if part not in (None, ""))
        dense = "" if each.dense is None else f"{each.dense:.2f}x"
        before, now = f"{each.old['sparse_us']:,.1f} µs", f"{each.new['sparse_us']:,.1f} µs"
        table.add_row(told, before, now, f"{each.ratio:.2f}x", dense)
    return table
