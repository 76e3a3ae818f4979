"""The command writes what it measured, and refuses what it does not know."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from benchmarks import results
from benchmarks.cases import smoke_cases
from suites import CPU, run_command, spoil_block_kernel


def test_the_command_writes_a_result_file(clock: None, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "ops.json"
    code, out = run_command("ops", "--smoke", "--json", str(path))
    assert code == 0
    assert "geometric means over the shapes" in out
    assert str(path) in out.replace("\n", "")
    result = json.loads(path.read_text())
    assert set(result) == {"device", "commit", "date", "rows"}
    assert set(result["device"]) == {
        "name", "sm", "power_limit", "clocks", "driver", "torch", "triton", "cuda", "cpu",
    }  # fmt: skip
    assert {row["pattern"] for row in result["rows"]} == {str(case.pattern) for case in smoke_cases()}
    assert {row["dtype"] for row in result["rows"]} == {"float32", "bfloat16"}
    assert list(path.parent.iterdir()) == [path], "no half-written file is left"


def test_a_wrong_kernel_fails_the_command(clock: None, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil_block_kernel(monkeypatch, lambda y: y + 1)
    code, out = run_command("ops", "--smoke", "--dtypes", "float32", "--only", "block")
    assert code == 1
    assert "wrong" in out


def test_cells_can_be_picked(clock: None) -> None:
    _, out = run_command("ops", "--smoke", "--dtypes", "float32", "--only", "2:4", "--rows", "5")
    assert "block" not in out
    assert "at 1 rows" not in out


def test_results_are_kept_per_device() -> None:
    place = results.place("ops", CPU)
    assert place.name == "ops.json"
    assert place.parent.parent == results.ROOT / "results"
    assert place.parent.name == place.parent.name.lower().strip("-")


def test_the_command_refuses_what_it_does_not_know(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command("ops", "--dtypes", "int8")[0] == 2
    assert "'int8' is no dtype here" in capsys.readouterr().err
    assert run_command("ops", "--shapes", "nothing")[0] == 2
    assert "no shape is called like 'nothing'" in capsys.readouterr().err
