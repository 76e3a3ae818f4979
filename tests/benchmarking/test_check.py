"""Each device with results is held against the targets of its kind; no figure decides unless asked to."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from benchmarks.check import verdicts
from benchmarks.results import ROOT, committed
from benchmarks.targets import load
from goals import target
from suites import run_command

from result_rows import result, row, save


def test_check_reads_every_device_and_names_what_is_not_measured(tmp_path: Path) -> None:
    save(tmp_path, "one", "ops.json", result([row()], cpu="x"))
    save(tmp_path, "two", "ops-decode.json", result([row(speedup=1.0)], cpu="x"))
    found = verdicts(tmp_path, [target(), target(device="sm_90"), target(suite="models")])
    assert {device: [each.status for each in mine] for device, mine in found.items()} == {
        "one": ["met", "not measured"],
        "two": ["missed", "not measured"],
        "sm_90": ["not measured"],
    }


def test_later_files_overrule_earlier_ones(tmp_path: Path) -> None:
    save(tmp_path, "one", "ops.json", result([row(speedup=1.0), row(shape="b", speedup=3.0)]))
    later = result([row(speedup=5.0)])
    save(tmp_path, "one", "ops-again.json", {**later, "date": "2026-02-01T00:00:00+00:00"})
    (verdict,) = verdicts(tmp_path, [target(aggregate="min")])["one"]
    assert (verdict.value, verdict.cells) == (3.0, 2)


def test_check_decides_nothing_unless_it_is_strict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.check.load", lambda: [target(name="fast enough", cells=1)])
    save(tmp_path, "one", "ops.json", result([row(speedup=1.0)]))
    code, out = run_command("check", "--results", str(tmp_path))
    assert code == 0
    assert "fast enough" in out
    assert "missed by 50%" in out
    assert run_command("check", "--results", str(tmp_path), "--strict")[0] == 1
    _, out = run_command("check", "--results", str(tmp_path), "--json")
    (told,) = json.loads(out)["one"]
    assert (told["status"], told["distance"], told["value"]) == ("missed", 0.5, 1.0)


def test_the_committed_results_are_read_whole() -> None:
    for suites in committed(ROOT / "results").values():
        assert set(suites) <= {"ops", "models", "train"}
        assert all(part["rows"] for parts in suites.values() for part in parts)


def test_targets_ask_for_what_the_committed_results_hold() -> None:
    """A slip in a filter would make a target "not measured" for ever."""
    found = next(mine for device, mine in verdicts(ROOT / "results", load()).items() if "avx512" in device)
    measured = [verdict.target.name for verdict in found if verdict.cells]
    assert len(measured) >= 20, measured
