"""python -m benchmarks crossover: which kernel wins at which number of rows, for one pattern, from result files."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.check import rows_of
from benchmarks.results import committed, read

Row = dict[str, Any]
DENSE = "dense"


@dataclass(frozen=True)
class Meeting:
    """One layer at one number of rows: µs of the best dense and of each kernel's best right configuration."""

    shape: str
    m: int
    times: dict[str, float]

    @property
    def winner(self) -> str:
        """The fastest."""
        return min(self.times, key=self.times.__getitem__)


def meetings(rows: Iterable[Row], pattern: str, dtype: str = "bfloat16", mode: str = "graph") -> list[Meeting]:
    """Every layer and number of rows that was measured, peers beside kernels, the fewest rows first."""
    found: dict[tuple[str, int], dict[str, float]] = {}
    for row in rows:
        asked = (row["pattern"], row["dtype"], row["mode"]) == (pattern, dtype, mode)
        if not asked or row.get("product", "y") != "y" or row.get("speedup") is None:
            continue
        times = found.setdefault((row["shape"], row["m"]), {DENSE: row["dense_us"]})
        if row["op"] != "peer":  # a peer's row holds the dense time of another moment
            times[DENSE] = min(times[DENSE], row["dense_us"])
        times[row["kernel"]] = min(times.get(row["kernel"], row["sparse_us"]), row["sparse_us"])
    return [Meeting(shape, m, times) for (shape, m), times in sorted(found.items(), key=lambda each: each[0])]


def main(paths: Iterable[Path], pattern: str, console: Console) -> int:
    """Prints a table for each device; a path is a result file or a folder of devices. 1 if nothing was measured."""
    shown = 0
    for name, rows in _devices(paths):
        found = meetings(rows, pattern)
        if found:
            console.print(_table(f"{name}, {pattern}, bfloat16, graph replay, µs", found))
            shown += 1
    if not shown:
        console.print(f"{pattern}: not measured on a GPU", highlight=False)
    return 0 if shown else 1


def _devices(paths: Iterable[Path]) -> Iterable[tuple[str, list[Row]]]:
    for path in paths:
        if path.is_dir():
            for device, suites in committed(path).items():
                yield device, rows_of(suites.get("ops", []))
        else:
            result = read(path)
            yield result["device"]["name"] or path.stem, rows_of([result])


def _table(title: str, found: list[Meeting]) -> Table:
    kernels = list(dict.fromkeys([DENSE, *(name for each in found for name in each.times)]))
    table = Table(title=title, box=None, padding=(0, 1, 0, 0))
    table.add_column("layer", no_wrap=True)
    for column in ("rows", *kernels):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("fastest")
    table.add_column("over dense", justify="right")
    for each in found:
        best = each.winner
        figures = [f"{each.times[name]:,.1f}" if name in each.times else "" for name in kernels]
        gain = each.times[DENSE] / each.times[best]
        table.add_row(each.shape, str(each.m), *figures, best, f"{gain:.2f}x")
    return table
