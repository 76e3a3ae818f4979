"""Rows and results as a benchmark writes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def row(**changes: Any) -> dict[str, Any]:
    """A right row of the ops suite: twice as fast as the best dense, four times as fast as torch's."""
    made = {
        "op": "block_linear", "pattern": "block 32x32", "density": 0.1, "mask": "random", "kernel": "cpu",
        "config": "", "m": 128, "n": 4096, "k": 4096, "dtype": "float32", "mode": "eager", "dense_us": 100.0,
        "today_us": 200.0, "control_us": 90.0, "sparse_us": 50.0, "spread": 0.1, "speedup": 2.0, "error_ratio": 0.5,
        "shape": "a", "threads": 1,
    }  # fmt: skip
    return {**made, **changes}


def result(rows: list[dict[str, Any]], date: str = "2026-01-01", **device: Any) -> dict[str, Any]:
    """A result file's content."""
    facts = dict.fromkeys(("name", "sm", "power_limit", "clocks", "driver", "torch", "triton", "cuda", "cpu"))
    when = f"{date}T00:00:00+00:00"
    return {"device": {**facts, **device}, "commit": "0" * 40, "date": when, "rows": rows}


def save(folder: Path, device: str, name: str, content: dict[str, Any]) -> Path:
    """A result file of a device; the folder."""
    (folder / device).mkdir(parents=True, exist_ok=True)
    (folder / device / name).write_text(json.dumps(content))
    return folder
