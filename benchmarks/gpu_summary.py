"""One page of what `make gpu` found: python3 benchmarks/gpu_summary.py RESULTS. Needs nothing but Python."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from statistics import median
from typing import Any


def steps(folder: Path) -> list[str]:
    """How each step ended."""
    return [f"  {line}" for line in (folder / "steps.txt").read_text().splitlines()]


def figures(path: Path) -> list[str]:
    """What a result file says: how many rows, and of the fastest right kernel of each cell its share of the limit."""
    try:
        found = json.loads(path.read_text())
    except ValueError:
        return [f"  {path.name}: cut off"]
    rows = [row for row in found["rows"] if row.get("op") != "peer"]
    wrong = [row for row in rows if (row.get("error_ratio") or 0) > 1]
    best: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in rows:
        if row not in wrong and row.get("sparse_us"):
            cell = tuple(row.get(each) for each in ("op", "shape", "pattern", "density", "mask", "m", "mode"))
            if cell not in best or row["sparse_us"] < best[cell]["sparse_us"]:
                best[cell] = row
    said = [f"  {path.name}: {len(rows)} rows, {len(wrong)} wrong"]
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in best.values():
        groups.setdefault((row.get("pattern"), row.get("density"), row.get("m")), []).append(row)
    for (pattern, density, m), group in groups.items():
        gains, shares = ([r[what] for r in group if r.get(what)] for what in ("speedup", "limit_fraction"))
        if gains and shares:
            kernels = ", ".join(sorted({f"{r['kernel']} {r['config']}".rstrip() for r in group}))
            said.append(
                f"    {pattern} {density:.0%} at {m} rows: {median(gains):.2f}x dense ({min(gains):.2f} to "
                f"{max(gains):.2f}), {median(shares):.0%} of the limit, {kernels}"
            )
    return said


def main(folder: Path) -> None:
    """Prints the page, and keeps it beside the results."""
    page = [f"summary of {folder}", "steps", *steps(folder)]
    found = sorted(folder.glob("*.json"))
    page += ["results" if found else "results: none, nothing was measured"]
    for path in found:
        page += figures(path)
    print("\n".join(page[:70] + (["  ..."] if len(page) > 70 else [])))  # noqa: T201, a command's output


if __name__ == "__main__":
    main(Path(sys.argv[1]))
