"""What a run prints: a line for each row, and geometric means over the shapes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from rich.table import Table

Row = dict[str, Any]
CASE = ("threads", "dtype", "pattern", "density", "mask", "m", "mode")


def line(name: str, row: Row) -> str:
    """One row in words."""
    about = f"T={row['threads']} {row['dtype']} {name}, {_who(row)}"
    if row.get("sparse_us") is None:
        return f"{about}: not run: {row['reason']}"
    unsure = row.get("no_difference")
    speed = "wrong" if row["speedup"] is None else "no difference" if unsure else f"{row['speedup']:.2f}x"
    speed += "" if row.get("steady", True) else " (times are unsteady)"
    figures = [f"{row['dense_us']:,.1f} → {row['sparse_us']:,.1f} µs", speed]
    if row.get("limit_fraction") is not None:
        figures.append(f"{row['limit_fraction']:.0%} of the limit")
    if row.get("over_stock") is not None:
        figures.append(f"{row['over_stock']:.2f}x over stock")
    if row.get("error_ratio") is not None:
        figures.append(f"error {row['error_ratio']:.2f}")
    if row.get("left_out"):
        figures.append(f"left out: {row['left_out']}")
    return f"{about}: {', '.join(figures)}"


def _who(row: Row) -> str:
    if "batch" in row:
        return f"{row['batch']}x{row['tokens']} {row['mode']}"
    told = [row.get("product"), row.get("kernel"), row.get("config"), row["mode"] if row.get("mode") != "eager" else ""]
    return " ".join(each for each in told if each)


def best_kernels(rows: Iterable[Row]) -> dict[tuple[Any, ...], dict[str, Row]]:
    """case -> shape -> the row of the fastest right kernel of our own; forward products only."""
    best: dict[tuple[Any, ...], dict[str, Row]] = {}
    for row in rows:
        if row["op"] == "peer" or row.get("product", "y") != "y" or row["speedup"] is None:
            continue
        held = best.setdefault(tuple(row[name] for name in CASE), {})
        held[row["shape"]] = max(row, held.get(row["shape"], row), key=lambda each: float(each["speedup"]))
    return best


def summary(rows: Sequence[Row]) -> Table:
    """Geometric means over the shapes, of the best kernel of each."""
    table = Table(title="geometric means over the shapes, the best kernel of each", box=None, padding=(0, 1, 0, 0))
    for column in ("T", "", "pattern", "kept", "", "rows", "", "over dense", "worst", "over today", "of limit"):
        table.add_column(column, justify="left" if column in ("", "pattern") else "right", no_wrap=True)
    for (threads, dtype, pattern, density, mask, m, mode), held in best_kernels(rows).items():
        gains = [row["speedup"] for row in held.values()]
        today = [row["today_us"] / row["sparse_us"] for row in held.values()]
        limit = [row["limit_fraction"] for row in held.values()]
        table.add_row(
            str(threads), dtype, pattern, f"{density:.0%}", mask, str(m), mode, f"{geomean(gains):.2f}x",
            f"{min(gains):.2f}x", f"{geomean(today):.2f}x", f"{geomean(limit):.0%}",
        )  # fmt: skip
    return table


def geomean(values: Sequence[float]) -> float:
    """The geometric mean."""
    return math.exp(sum(math.log(max(value, 1e-9)) for value in values) / len(values))
