"""One page of what `make gpu` found: python3 benchmarks/gpu_summary.py RESULTS. Needs nothing but Python."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from statistics import median
from typing import Any

Row = dict[str, Any]
CELL = ("op", "model", "shape", "pattern", "density", "mask", "m", "batch", "mode")
LINES = 70  # of a page


def fastest(rows: list[Row]) -> list[Row]:
    """Of each cell the fastest row that is right."""
    best: dict[tuple[Any, ...], Row] = {}
    for row in rows:
        cell = tuple(row.get(each) for each in CELL)
        right = row.get("speedup") and not (row.get("error_ratio") or 0) > 1
        if right and (cell not in best or row["speedup"] > best[cell]["speedup"]):
            best[cell] = row
    return list(best.values())


def gain(count: Any, group: list[Row]) -> str:
    """What rows at one number of rows (or one batch) say: the median gain over dense and share of the limit."""
    said = f"{count}: {median(row['speedup'] for row in group):.2f}x"
    shares = [row["limit_fraction"] for row in group if row.get("limit_fraction")]
    return said + (f" {median(shares):.0%}" if shares else "")


def figures(path: Path) -> list[str]:
    """What a result file says, a line for each pattern, with the kernels that were fastest."""
    try:
        found = json.loads(path.read_text())
    except ValueError:
        return [f"  {path.name}: cut off"]
    rows = [row for row in found["rows"] if row.get("op") != "peer"]
    wrong = sum((row.get("error_ratio") or 0) > 1 for row in rows)
    said = [
        f"  {path.name}: {len(rows)} rows, {wrong} wrong; rows of x (or batch): gain over the best dense, of the limit"
    ]
    patterns: dict[str, dict[Any, list[Row]]] = {}
    for row in fastest(rows):
        parts = (row.get("model"), row.get("pattern"), f"{row['density']:.0%}" if row.get("density") else None)
        name = " ".join(str(part) for part in parts if part)
        patterns.setdefault(name, {}).setdefault(row.get("m") or row.get("batch"), []).append(row)
    for name, counts in patterns.items():
        kernels = sorted({row.get("kernel") or "" for group in counts.values() for row in group} - {""})
        line = ", ".join(gain(count, group) for count, group in counts.items())
        said.append(f"    {name}  {line}" + (f"  ({', '.join(kernels)})" if kernels else ""))
    return said


def main(folder: Path) -> None:
    """Prints the page: how each step ended, what was measured, and how many targets that met."""
    page = [f"summary of {folder}", "steps", *(f"  {line}" for line in (folder / "steps.txt").read_text().splitlines())]
    found = sorted(folder.glob("*.json"))
    page += ["results" if found else "results: none, nothing was measured"]
    for path in found:
        page += figures(path)
    if (judged := folder / "targets.txt").exists():
        page += ["targets", *(f"  {line}" for line in judged.read_text().splitlines() if " met, " in line)]
    print("\n".join(page[:LINES] + (["  ..."] if len(page) > LINES else [])))  # noqa: T201, a command's output


if __name__ == "__main__":
    main(Path(sys.argv[1]))
