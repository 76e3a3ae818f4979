"""Result files: one shape for every suite, so that any two can be compared."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from ajour.planning.device import this_device

ROOT = Path(__file__).resolve().parent
Result = dict[str, Any]


def device_facts(device: torch.device) -> dict[str, Any]:
    """What a reader must know of the machine; what the device does not have is null."""
    here, cpu = this_device(device), this_device("cpu")
    card = _card() if device.type == "cuda" else {}
    return {
        "name": here.name,
        "sm": here.level if device.type == "cuda" else None,
        "power_limit": card.get("power.limit"),
        "clocks": card.get("clocks.max.sm"),
        "driver": card.get("driver_version"),
        "torch": torch.__version__,
        "triton": metadata.version("triton") if importlib.util.find_spec("triton") else None,
        "cuda": torch.version.cuda,
        "cpu": f"{cpu.name} ({cpu.level})",
    }


@cache
def _card() -> dict[str, str]:
    """What nvidia-smi says of the card; nothing where it does not answer."""
    fields = ("power.limit", "clocks.max.sm", "driver_version")
    command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader"]
    try:
        out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return {}
    return dict(zip(fields, (each.strip() for each in out.splitlines()[0].split(",")), strict=True))


@cache  # a result is written after every cell, and a run measures what it started with
def commit() -> str:
    """The checkout's commit, marked where files other than results differ from it; "unknown" outside of one."""

    def git(*arguments: str) -> str | None:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else None

    sha = git("rev-parse", "HEAD")
    if sha is None:
        return "unknown"
    return sha + ("-dirty" if git("status", "--porcelain", "--", "..", ":!results") else "")


def result(device: torch.device, rows: Sequence[dict[str, Any]], sha: str = "") -> Result:
    """{"device", "commit", "date", "rows"}, as a result file holds it; sha: the commit, where git can't be asked."""
    date = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return {"device": device_facts(device), "commit": sha or commit(), "date": date, "rows": list(rows)}


def write(path: Path, device: torch.device, rows: Sequence[dict[str, Any]], sha: str = "") -> None:
    """Writes a result file; a run that is cut off leaves what it has, never half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(path.suffix + ".part")
    part.write_text(json.dumps(result(device, rows, sha), indent=1, allow_nan=False) + "\n")
    part.replace(path)


@dataclass
class Keeper:
    """Rows as they come, written to files for a tenth of the time at most: a file of thousands takes long to write.

    Whoever keeps rows writes them `at_once` at the end, whatever ends it.
    """

    paths: Sequence[Path]
    device: torch.device
    rows: list[dict[str, Any]]
    sha: str = ""
    due: float = 0.0

    def write(self, at_once: bool = False) -> None:
        """Writes all rows, unless that was done a moment ago."""
        begin = time.monotonic()
        if begin < self.due and not at_once:
            return
        for path in self.paths:
            write(path, self.device, self.rows, self.sha)
        self.due = begin + 10 * (time.monotonic() - begin)


def read(path: Path) -> Result:
    """A result file; raises ValueError if it is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is no result file: {error}") from None
    if not isinstance(found, dict) or not {"device", "commit", "date", "rows"} <= set(found):
        raise ValueError(f"{path} is no result file: expected device, commit, date and rows")
    return found


def committed(folder: Path) -> dict[str, dict[str, list[Result]]]:
    """device folder -> suite -> its results, oldest first. A suite may lie in parts: ops.json, ops-decode.json."""
    found: dict[str, dict[str, list[Result]]] = {}
    for path in sorted(folder.glob("*/*.json")):
        found.setdefault(path.parent.name, {}).setdefault(path.stem.split("-")[0], []).append(read(path))
    for suites in found.values():
        for parts in suites.values():
            parts.sort(key=lambda each: each["date"])
    return found


def place(suite: str, device: torch.device, part: str = "") -> Path:
    """Where the committed result of a suite (or a part of it) on this kind of device lies."""
    here = this_device(device)
    folder = re.sub(r"[^a-z0-9]+", "-", f"{here.name} {here.level}".lower()).strip("-")
    return ROOT / "results" / folder / (f"{suite}-{part}.json" if part else f"{suite}.json")
