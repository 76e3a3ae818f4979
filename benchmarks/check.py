"""python -m benchmarks check: every target met, missed (by how much) or not measured, for each device with results."""

from __future__ import annotations

from collections.abc import Iterable
from math import isfinite
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.results import Result, committed
from benchmarks.targets import Target, Verdict, judge, load

STYLES = {"met": "green", "missed": "bold red", "not measured": "dim"}


def verdicts(folder: Path, targets: Iterable[Target]) -> dict[str, list[Verdict]]:
    """device -> what its results say to each target of its kind. A kind without any results stands for itself."""
    targets = list(targets)
    found: dict[str, list[Verdict]] = {}
    kinds = set()
    for device, suites in committed(folder).items():
        kind = _kind(next(iter(suites.values()))[-1])
        kinds.add(kind)
        mine = [target for target in targets if target.device == kind]
        if mine:
            found[device] = [judge(target, rows_of(suites.get(target.suite, []))) for target in mine]
    for kind in dict.fromkeys(target.device for target in targets if target.device not in kinds):
        found[kind] = [Verdict(target, "not measured", None, 0) for target in targets if target.device == kind]
    return found


def rows_of(parts: Iterable[Result]) -> list[dict[str, Any]]:
    """The rows of a suite's files, oldest file first; a row that a later file holds too counts as that says."""
    from benchmarks.against import key

    return list({key(row): row for part in parts for row in part["rows"]}.values())


def _kind(result: Result) -> str:
    return str(result["device"]["sm"] or "cpu")


def main(folder: Path, console: Console, *, as_json: bool, strict: bool) -> int:
    """Prints; 1 if `strict` and a target is missed."""
    found = verdicts(folder, load())
    if as_json:
        console.print_json(data={device: [_as_data(each) for each in mine] for device, mine in found.items()})
    else:
        for device, mine in found.items():
            console.print(_table(device, mine))
            counts = {status: sum(each.status == status for each in mine) for status in STYLES}
            told = ", ".join(f"{count} {status}" for status, count in counts.items())
            console.print(f"{told}; {sum(each.ambitious for each in mine)} reach their ambition\n", highlight=False)
    return 1 if strict and any(each.status == "missed" for mine in found.values() for each in mine) else 0


def _table(device: str, found: list[Verdict]) -> Table:
    table = Table(title=device, box=None, padding=(0, 1, 0, 0))
    table.add_column("target", overflow="fold")
    for column in ("found", "floor", "ambition"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("")
    table.add_column("furthest", overflow="fold", style="dim")
    for each in found:
        target = each.target
        status = each.status
        if status == "missed" and each.distance is not None:
            status += f" by {each.distance:.0%}"
        if status == "not measured" and each.cells:
            status += f" ({each.cells} of {target.cells} cells)"
        value = "" if each.value is None else f"{each.value:.3g}"
        aim = "≤ " if target.lower else ""
        table.add_row(
            target.name, value, f"{aim}{target.floor:g}", f"{aim}{target.ambition:g}",
            f"[{STYLES[each.status]}]{status}[/]", each.worst,
        )  # fmt: skip
    return table


def _as_data(verdict: Verdict) -> dict[str, Any]:
    target = verdict.target
    return {
        "name": target.name,
        "suite": target.suite,
        "metric": f"{target.aggregate} of {target.metric}",
        "status": verdict.status,
        "value": verdict.value if verdict.value is None or isfinite(verdict.value) else None,
        "floor": target.floor,
        "ambition": target.ambition,
        "distance": verdict.distance if verdict.distance is None or isfinite(verdict.distance) else None,
        "ambitious": verdict.ambitious,
        "cells": verdict.cells,
        "worst": verdict.worst,
    }
