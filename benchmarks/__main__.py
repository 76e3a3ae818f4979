"""python -m benchmarks ops|models|train [--smoke] [--json FILE] [--save]: measures, prints, and writes result files."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks import results, shapes

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
WIDTH = 120  # where no terminal says otherwise
Cells = Iterator[tuple[str, list[dict[str, Any]]]]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("suite", choices=("ops", "models", "train"))
    parser.add_argument(
        "--smoke", action="store_true", help="small and short: shows that the suite works, nothing more"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result there, after every cell")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/<device>/<suite>.json")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--threads", default="1", help="numbers of CPU threads, like 1,2")
    parser.add_argument("--dtypes", default="float32,bfloat16")
    parser.add_argument("--rows", default="", help="rows of x, like 1,128; default: those a pattern is meant for")
    parser.add_argument("--only", default="", help="cells whose shape and case hold this text, like 'block 32x32 10%%'")
    parser.add_argument("--seconds", type=float, default=0.3, help="time for each cell")
    return parser


def main(arguments: Sequence[str] | None = None, console: Console | None = None) -> int:
    """Runs a suite; 1 if a kernel was wrong."""
    asked = _parser().parse_args(arguments)
    console = console or Console(width=None if Console().is_terminal else WIDTH)
    device = torch.device(asked.device)
    rows: list[dict[str, Any]] = []
    paths = [path for path in (asked.json, results.place(asked.suite, device) if asked.save else None) if path]
    threads = [int(count) for count in asked.threads.split(",")]
    suites = {
        "ops": lambda: _ops(asked, device, threads),
        "models": lambda: _models(asked, device, threads, console),
        "train": lambda: _train(asked, device, threads),
    }
    cells = suites[asked.suite]()
    for name, found in cells:
        rows += found
        for row in found:
            console.print(_line(name, row), highlight=False, soft_wrap=True)
        for path in paths:
            results.write(path, device, rows)
    wrong = [row for row in rows if row["error_ratio"] > 1]
    if asked.suite == "ops" and rows:
        console.print(_summary(rows))
    console.print(
        f"{len(rows)} rows, {len(wrong)} wrong" + "".join(f"; wrote {path}" for path in paths), highlight=False
    )
    return 1 if wrong else 0


def _ops(asked: argparse.Namespace, device: torch.device, threads: list[int]) -> Cells:
    from benchmarks.ops import Settings, run

    cases = shapes.smoke_cases() if asked.smoke else shapes.cases()
    places = shapes.SMOKE if asked.smoke else shapes.SHAPES
    chosen = [case for case in cases if any(asked.only in f"{name} {case}" for name in places)]
    named = {name: place for name, place in places.items() if any(asked.only in f"{name} {case}" for case in cases)}
    dtypes = [DTYPES[name] for name in asked.dtypes.split(",")]
    counts = [int(m) for m in asked.rows.split(",")] if asked.rows else None
    seconds = 0.002 if asked.smoke else asked.seconds
    return run(Settings(named, chosen, dtypes, threads, device, counts, seconds, asked.smoke))


def _models(asked: argparse.Namespace, device: torch.device, threads: list[int], console: Console) -> Cells:
    from benchmarks.models import run, smoke_subjects, subjects

    every = smoke_subjects() if asked.smoke else subjects()
    chosen = [each for each in every if asked.only in f"{each.name} {each.pattern}"]
    seconds = 0.05 if asked.smoke else max(asked.seconds, 2.0)
    return run(chosen, threads, device, seconds, lambda plan: console.print(str(plan), highlight=False, soft_wrap=True))


def _train(asked: argparse.Namespace, device: torch.device, threads: list[int]) -> Cells:
    from benchmarks.train import Settings, run

    dtypes = [DTYPES[name] for name in asked.dtypes.split(",")]
    seconds = 0.002 if asked.smoke else max(asked.seconds, 3.0)
    return run(Settings(dtypes, threads, device, seconds, asked.smoke, asked.only))


def _line(name: str, row: dict[str, Any]) -> str:
    speed = "wrong" if row["speedup"] is None else "no difference" if row["no_difference"] else f"{row['speedup']:.2f}x"
    kernel = f"{row['kernel']} {row['config']}".strip() if "kernel" in row else f"{row['batch']}x{row['tokens']}"
    limit = (
        f", {row['limit_fraction']:.0%} of the limit" if "limit_fraction" in row else f" ({row['over_stock']}x stock)"
    )
    return (
        f"T={row['threads']} {row['dtype']} {name}, {kernel}: {row['dense_us']:,.1f} → {row['sparse_us']:,.1f} µs, "
        f"{speed}{limit}, error {row['error_ratio']:.2f}"
    )


def _summary(rows: Sequence[dict[str, Any]]) -> Table:
    """Geometric means over the shapes, of the best kernel of each."""
    best: dict[tuple[Any, ...], dict[str, dict[str, Any]]] = {}
    for row in rows:
        if row["speedup"] is None:
            continue
        key = tuple(row[name] for name in ("threads", "dtype", "pattern", "density", "mask", "m", "mode"))
        held = best.setdefault(key, {})
        held[row["shape"]] = max(row, held.get(row["shape"], row), key=lambda each: float(each["speedup"]))
    table = Table(title="geometric means over the shapes, the best kernel of each", box=None, padding=(0, 1, 0, 0))
    for column in ("T", "", "pattern", "kept", "", "rows", "", "over dense", "worst", "over today", "of limit"):
        table.add_column(column, justify="left" if column in ("", "pattern") else "right", no_wrap=True)
    for (threads, dtype, pattern, density, mask, m, mode), held in best.items():
        gains = [row["speedup"] for row in held.values()]
        today = [row["today_us"] / row["sparse_us"] for row in held.values()]
        limit = [row["limit_fraction"] for row in held.values()]
        table.add_row(
            str(threads), dtype, pattern, f"{density:.0%}", mask, str(m), mode, f"{_mean(gains):.2f}x",
            f"{min(gains):.2f}x", f"{_mean(today):.2f}x", f"{_mean(limit):.0%}",
        )  # fmt: skip
    return table


def _mean(values: Sequence[float]) -> float:
    return math.exp(sum(math.log(max(value, 1e-9)) for value in values) / len(values))


if __name__ == "__main__":
    raise SystemExit(main())
