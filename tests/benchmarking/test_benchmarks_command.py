"""The command writes what it measured, and refuses what it does not know."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from benchmarks import __main__ as command
from benchmarks import models, results
from benchmarks.cases import smoke_cases
from benchmarks.ops import cell_of
from suites import CPU, run_command, spoil_block_kernel

from result_rows import row


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


def test_continue_measures_only_the_cells_that_are_missing(clock: None, tmp_path: Path) -> None:
    path = tmp_path / "ops.json"
    arguments = ["ops", "--smoke", "--no-gradients", "--no-peers", "--dtypes", "float32", "--json", str(path)]
    assert run_command(*arguments)[0] == 0
    whole = json.loads(path.read_text())
    cell = whole["rows"][-1]
    kept = [each for each in whole["rows"] if cell_of(each) != cell_of(cell)]
    assert 0 < len(kept) < len(whole["rows"])
    path.write_text(json.dumps({**whole, "rows": kept}))
    code, _ = run_command(*arguments, "--continue")
    assert code == 0
    found = json.loads(path.read_text())["rows"]
    assert found[: len(kept)] == kept, "what was there stays"
    assert {cell_of(each) for each in found[len(kept) :]} == {cell_of(cell)}


def killed() -> None:
    """As `timeout` does it."""
    os.kill(os.getpid(), signal.SIGTERM)


def broken() -> None:
    raise ZeroDivisionError


@pytest.mark.parametrize("ended", [killed, broken])
def test_what_was_measured_is_written_whatever_ends_the_suite(
    ended: Callable[[], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Rows that come fast are not written each time, and none of them is lost."""

    def suite(*asked: object) -> Iterator[tuple[str, list[dict[str, object]]]]:
        for m in range(50):
            yield f"cell {m}", [row(m=m)]
        ended()

    written: list[int] = []
    write = results.write

    def counted(path: Path, device: torch.device, rows: Sequence[dict[str, Any]], sha: str) -> None:
        written.append(len(rows))
        write(path, device, rows, sha)

    monkeypatch.setitem(command.SUITES, "ops", suite)
    monkeypatch.setattr(results, "write", counted)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises((SystemExit, ZeroDivisionError)):
        command.main(["ops", "--json", str(tmp_path / "ops.json")])
    assert [row["m"] for row in results.read(tmp_path / "ops.json")["rows"]] == list(range(50))
    assert written[-1] == 50
    assert len(written) < 50
    assert signal.getsignal(signal.SIGTERM) is before


def test_continue_mixes_no_devices(clock: None, tmp_path: Path) -> None:
    path = tmp_path / "ops.json"
    path.write_text(json.dumps({"device": {"name": "Another CPU"}, "commit": "", "date": "", "rows": []}))
    code, _ = run_command("ops", "--smoke", "--json", str(path), "--continue")
    assert code == 2


def test_the_train_suite_gets_its_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    @dataclass
    class Settings:
        threads: list[int]
        dtypes: list[torch.dtype]
        device: torch.device
        seconds: float
        smoke: bool
        only: str

    seen: list[Settings] = []

    def run(settings: Settings) -> Iterator[tuple[str, list[dict[str, Any]]]]:
        seen.append(settings)
        yield "AdamW, compact", [row(op="masked_adamw", config="compact", shape="84 tensors")]

    train = ModuleType("benchmarks.train")
    train.Settings, train.run = Settings, run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "benchmarks.train", train)
    path = tmp_path / "train.json"
    arguments = ["--smoke", "--dtypes", "float32", "--threads", "1,2", "--only", "compact", "--json", str(path)]
    code, out = run_command("train", *arguments)
    assert code == 0
    assert "AdamW, compact, cpu compact: 100.0 → 50.0 µs" in out
    assert seen == [Settings([1, 2], [torch.float32], CPU, 0.002, True, "compact")]
    assert json.loads(path.read_text())["rows"][0]["config"] == "compact"


def test_this_run_is_compared_with_an_older_one(clock: None, tmp_path: Path) -> None:
    path = tmp_path / "older.json"
    first = ("ops", "--smoke", "--dtypes", "float32", "--only", "block", "--no-peers", "--no-gradients")
    run_command(*first, "--json", str(path), "--rows", "1")
    code, out = run_command(*first, "--against", str(path), "--rows", "1,16")
    assert code == 0
    assert "1 rows in both: 0 faster, 0 slower, 1 no difference; 0 missing, 1 new" in out


def test_a_commit_can_be_told_and_a_mode_that_is_not_there_is_refused(
    clock: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "ops.json"
    run_command("ops", "--smoke", "--dtypes", "float32", "--only", "2:4", "--json", str(path), "--commit", "abc")
    assert json.loads(path.read_text())["commit"] == "abc"
    assert run_command("ops", "--smoke", "--modes", "graph")[0] == 2
    assert "--modes graph: on cpu there is eager" in capsys.readouterr().err


def test_results_are_saved_where_they_are_committed_only_if_asked(
    clock: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(results, "ROOT", tmp_path)
    small = ("ops", "--smoke", "--dtypes", "float32", "--only", "2:4", "--rows", "1")
    run_command(*small)
    assert not list(tmp_path.iterdir())
    for saved, name in ((("--save",), "ops.json"), (("--save", "again"), "ops-again.json")):
        run_command(*small, *saved)
        assert results.read(results.place("ops", CPU).with_name(name))["rows"]


@pytest.mark.usefixtures("kernels_in_python")
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
    assert results.place("ops", CPU, "two-threads") == place.with_name("ops-two-threads.json")
    assert place.parent.parent == results.ROOT / "results"
    assert place.parent.name == place.parent.name.lower().strip("-")


def test_the_command_refuses_what_it_does_not_know(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command("ops", "--dtypes", "int8")[0] == 2
    assert "'int8' is no dtype here" in capsys.readouterr().err
    assert run_command("ops", "--shapes", "nothing")[0] == 2
    assert "no shape is called like 'nothing'" in capsys.readouterr().err


def test_models_that_nobody_asked_for_are_not_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[str] = []

    def run(settings: models.Settings, plans: object) -> list[tuple[str, list[dict[str, object]]]]:
        asked.extend(f"{each} {str(each.dtype)[6:]}" for each in settings.subjects)
        return []

    monkeypatch.setattr(models, "run", run)
    assert run_command("models", "--only", "GPT-2-like decoder 2:4", "--dtypes", "bfloat16")[0] == 0
    assert asked == ["GPT-2-like decoder 2:4 bfloat16"]
    assert run_command("models", "--only", "MiniLM", "--dtypes", "bfloat16")[0] == 2
    assert "--only and --dtypes leave none of the models MiniLM-L6 2:4, " in capsys.readouterr().err
