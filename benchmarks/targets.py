"""Targets as data: what targets.toml says, and what a result file says to one of them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.results import ROOT
from benchmarks.tables import geomean

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Row = dict[str, Any]
FILE = ROOT / "targets.toml"
AGGREGATES: dict[str, Callable[[Sequence[float]], float]] = {
    "geomean": geomean,
    "median": median,
    "min": min,
    "max": max,
}
# a cell is what rows of several kernels share
CELL = (
    "op", "model", "product", "pattern", "density", "mask", "shape", "m", "batch",
    "tokens", "dtype", "mode", "threads",
)  # fmt: skip
ITEM = {"float32": 4, "float64": 8, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Target:
    """What must be reached, on one kind of device ("cpu", "sm_90").

    where:     field -> value, list of values, or {min, max}; of the rows of `suite` those that count.
    metric:    a field, or "over NAME": NAME's time (a field NAME_us, or a peer of that name) over ours, or
               "scaling": one thread's time over this one's, or "call_us": what a call takes longer than torch's, or
               "gain_times_density": 1 where time is in proportion to what is kept.
    aggregate: of the cells' values; a cell counts with its best kernel, or (`every`) with its worst. A wrong answer is
               worth nothing.
    cells:     how many cells there must be, else it is not measured.
    lower:     smaller is better.
    """

    name: str
    suite: str
    device: str
    where: Mapping[str, Any]
    metric: str
    aggregate: str
    floor: float
    ambition: float
    cells: int = 1
    every: bool = False
    lower: bool = False


@dataclass(frozen=True)
class Verdict:
    """status: "met", "missed" or "not measured". value: what was found; worst: the cell furthest away."""

    target: Target
    status: str
    value: float | None
    cells: int
    worst: str = ""

    @property
    def distance(self) -> float | None:
        """How far below its floor a target is, as a share of it; negative above."""
        if self.value is None:
            return None
        return (1 if not self.target.lower else -1) * (1 - self.value / self.target.floor)

    @property
    def ambitious(self) -> bool:
        """Whether the ambition is reached too."""
        return self.status == "met" and _reached(self.value, self.target.ambition, self.target.lower)


def load(path: Path = FILE) -> list[Target]:
    """Groups of targets: what a group says holds for each of its targets that does not say otherwise."""
    found = []
    for group in tomllib.loads(path.read_text(encoding="utf-8"))["group"]:
        shared = {name: value for name, value in group.items() if name != "targets"}
        for each in group["targets"]:
            where = {**shared.get("where", {}), **each.get("where", {})}
            target = Target(**{**shared, **each, "where": where})
            assert target.aggregate in AGGREGATES, f"{target.name}: no aggregate is called {target.aggregate}"
            found.append(target)
    return found


def judge(target: Target, rows: Sequence[Row]) -> Verdict:
    """The verdict of one device's rows of the target's suite."""
    cells: dict[tuple[Any, ...], list[float]] = {}
    better = min if target.lower else max
    for row in rows:
        if not _counts(row, target.where):
            continue
        wrong = (row.get("error_ratio") or 0) > 1
        value = (inf if target.lower else 0.0) if wrong else _value(row, target.metric, rows)
        if value is not None:
            cells.setdefault(tuple(row.get(name) for name in CELL), []).append(value)
    if not cells:
        return Verdict(target, "not measured", None, 0)
    best = {
        cell: (max if target.lower else min)(each) if target.every else better(each) for cell, each in cells.items()
    }
    value = AGGREGATES[target.aggregate](list(best.values()))
    furthest = (max if target.lower else min)(best, key=lambda cell: best[cell])
    told = f"{_told(furthest)}: {best[furthest]:.3g}"
    if len(cells) < target.cells:
        return Verdict(target, "not measured", value, len(cells), told)
    status = "met" if _reached(value, target.floor, target.lower) else "missed"
    return Verdict(target, status, value, len(cells), told)


def _reached(value: float | None, goal: float, lower: bool) -> bool:
    return value is not None and (value <= goal if lower else value >= goal)


def _counts(row: Row, where: Mapping[str, Any]) -> bool:
    if row.get("op") == "peer" and "op" not in where:
        return False
    return all(_fits(_field(row, name), wanted) for name, wanted in where.items())


def _fits(value: Any, wanted: Any) -> bool:
    if isinstance(wanted, Mapping):
        return value is not None and wanted.get("min", value) <= value <= wanted.get("max", value)
    return value in wanted if isinstance(wanted, list) else value == wanted


def _field(row: Row, name: str) -> Any:
    if name == "dense_mb":
        return row["n"] * row["k"] * ITEM[row["dtype"]] / 1e6 if "n" in row and row["dtype"] in ITEM else None
    if name == "product":
        return row.get("product", "y")
    return row.get(name)


def _value(row: Row, metric: str, rows: Iterable[Row]) -> float | None:
    """The metric of a row with a right answer; None where the row does not say."""
    if metric == "scaling":
        return _over(row, (each for each in rows if each.get("threads") == 1), (*CELL[:-1], "kernel", "config"))
    if metric == "gain_times_density":
        return row["speedup"] * row["density"] if row.get("speedup") and row.get("density") else None
    if metric == "call_us":
        both = row.get("sparse_us"), row.get("today_us")
        return both[0] - both[1] if None not in both else None
    if not metric.startswith("over "):
        return row.get(metric)
    name = metric.removeprefix("over ")
    if row.get(f"{name.replace(' ', '_')}_us") is not None:
        return float(row[f"{name.replace(' ', '_')}_us"] / row["sparse_us"])
    peers = (each for each in rows if each.get("op") == "peer" and each["kernel"] == name and each["speedup"])
    same = [name for name in CELL if name != "op"]
    beside = [each for each in peers if all(each.get(field) == row.get(field) for field in same)]
    return row["speedup"] / beside[-1]["speedup"] if beside and row.get("speedup") else None


def _over(row: Row, others: Iterable[Row], same: Sequence[str]) -> float | None:
    beside = [each for each in others if all(each.get(name) == row.get(name) for name in same)]
    return beside[-1]["sparse_us"] / row["sparse_us"] if beside else None


def _told(cell: tuple[Any, ...]) -> str:
    named = dict(zip(CELL, cell, strict=True))
    words = [named["model"] or named["shape"], named["dtype"]]
    words += [f"{named['m']} rows" if named["m"] else f"{named['batch']}x{named['tokens']}" if named["batch"] else None]
    return " ".join(str(word) for word in words if word)
