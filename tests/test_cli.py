"""The command line: what each verb prints, writes and exits with."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

import ajour
from ajour import cli
from ajour.diagnosis import Diagnosis, Finding
from factories import pruned
from hand_plan import hand_plan

SHAPE = ("--shape", "4x64")


def run(*args: object) -> Result:
    return CliRunner().invoke(cli.app, [str(arg) for arg in args])


def exits(monkeypatch: pytest.MonkeyPatch, *args: object) -> int:
    """The exit code of `ajour ARGS`."""
    monkeypatch.setattr(sys, "argv", ["ajour", *map(str, args)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    return int(stop.value.code or 0)


@pytest.fixture
def plan_file(tmp_path: Path) -> Path:
    """A plan by hand, in which both layers are sparse."""
    path = tmp_path / "plan.json"
    path.write_text(hand_plan(pruned()).to_json())
    return path


@pytest.fixture
def converted(tmp_path: Path, plan_file: Path) -> Path:
    path = tmp_path / "converted.safetensors"
    result = run("convert", "factories:pruned", "-o", path, "--plan", plan_file)
    assert result.exit_code == 0, result.output
    return path


def test_doctor_lists_self_tests_and_exits_3_where_one_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    fine = Diagnosis((Finding("torch", "ok", "9.9"),))
    monkeypatch.setattr("ajour.diagnosis.diagnose", lambda: fine)
    assert run("doctor").exit_code == 0
    assert "torch" in run("doctor").output
    assert json.loads(run("doctor", "--json").output)["findings"][0]["found"] == "9.9"
    monkeypatch.setattr("ajour.diagnosis.diagnose", lambda: Diagnosis((Finding("nm", "broken", "error 9"),)))
    assert run("doctor").exit_code == 3
    assert json.loads(run("doctor", "--json").output)["ok"] is False


def test_the_installed_command_runs() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from ajour.cli import main; main()", "doctor", "--json"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert any("self-test" in finding["found"] for finding in json.loads(done.stdout)["findings"])


def test_the_version_is_one_line_with_what_a_report_of_a_fault_needs() -> None:
    result = run("--version")
    assert result.exit_code == 0
    assert result.output.startswith(f"ajour {version('ajour')} · torch {torch.__version__} · ")
    assert result.output.rstrip().endswith(f"{torch.get_num_threads()} threads)") or torch.cuda.is_available()
    assert result.output.count("\n") == 1


def test_inspect_a_factory() -> None:
    result = run("inspect", "factories:pruned", "--json")
    assert result.exit_code == 0, result.output
    assert [(row["name"], row["pattern"]) for row in json.loads(result.output)["layers"]] == [
        ("0", "2:4"),
        ("2", "2:4"),
    ]
    assert "2 layers: 2 with zeros" in run("inspect", "factories:pruned").output


def test_project_says_what_it_costs_and_saves_only_when_asked(tmp_path: Path) -> None:
    result = run("project", "factories:pruned", "1:4", "--permute", "--shape", "4x64", "--json")
    assert result.exit_code == 0, result.output
    rows = json.loads(result.output)["layers"]
    assert [row["permuted"] for row in rows] == [True, True]
    assert all(0 < row["energy_lost"] < row["energy_lost_unpermuted"] and row["output_error"] > 0 for row in rows)
    assert "2 fit as they are" in run("project", "factories:pruned", "2:4").output
    path = tmp_path / "model.safetensors"
    result = run("project", "factories:pruned", "1:4", "--permute", "-o", path)
    assert result.exit_code == 0
    assert result.output.endswith(f"a report changes nothing, .apply(model) does\nwrote {path}, with it applied\n")
    assert isinstance(ajour.load(path, pruned())[0], ajour.nn.Permuted)


def test_inspect_a_file(converted: Path) -> None:
    result = run("inspect", converted, "--json")
    assert result.exit_code == 0, result.output
    assert {row["pattern"] for row in json.loads(result.output)["layers"]} == {"2:4"}


def test_inspect_refuses_a_damaged_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(b"junk" * 30)
    assert exits(monkeypatch, "inspect", damaged) == 2
    message = capsys.readouterr().err
    assert "neither a safetensors file nor a torch file" in message
    assert message.count("\n") == 1


@pytest.mark.parametrize(
    ("spec", "text", "code"),
    [
        ("nowhere", "is no folder, no file and no", 2),
        (":pruned", "is no folder, no file and no", 2),
        ("no_such_module_of_mine:f", "No module named", 2),
        ("factories:absent", "has no callable 'absent'", 2),
        ("factories:number", "to return an nn.Module, found int", 2),
        ("", "'' is no folder, no file and no", 2),
    ],
)
def test_an_unknown_model_exits_2(
    spec: str, text: str, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exits(monkeypatch, "inspect", spec) == code
    message = capsys.readouterr().err
    assert text in message
    assert message.count("\n") == 1


def test_plan_writes_what_it_prints(tmp_path: Path) -> None:
    path = tmp_path / "made.json"
    result = run("plan", "factories:pruned", "--rows", "1,8", *SHAPE, "-o", path, "--json")
    assert result.exit_code == 0, result.output
    made = ajour.Plan.from_json(path.read_text())
    assert made == ajour.Plan.from_json(result.stdout)
    assert [measurement.rows for measurement in made["0"].measurements] == [1, 8]
    assert not made.trainable


def test_plan_times_training_when_asked() -> None:
    result = run("plan", "factories:pruned", "--trainable", *SHAPE, "--json")
    assert result.exit_code == 0, result.output
    assert ajour.Plan.from_json(result.stdout).trainable


def test_an_output_that_takes_nothing_more_exits_3() -> None:
    start = "from ajour.cli import main; main()"
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [sys.executable, "-c", start, "inspect", "factories:pruned", "--json"],
            stdout=full, stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parent,
        )  # fmt: skip
    assert done.returncode == 3
    assert done.stderr.startswith("error: could not read or write: ")
    assert done.stderr.count("\n") == 1


def test_convert_plans_and_saves(tmp_path: Path) -> None:
    path = tmp_path / "made.safetensors"
    result = run("convert", "factories:pruned", "-o", path, *SHAPE)
    assert result.exit_code == 0, result.output
    assert f"wrote {path}" in result.output
    x = torch.randn(4, 64)
    torch.testing.assert_close(ajour.load(path, pruned())(x), pruned()(x), rtol=1e-5, atol=1e-5)


def test_convert_takes_a_plan_and_prints_it_as_json(tmp_path: Path, plan_file: Path) -> None:
    path = tmp_path / "made.safetensors"
    result = run("convert", "factories:pruned", "-o", path, "--plan", plan_file, "--json")
    assert result.exit_code == 0, result.output
    assert ajour.Plan.from_json(result.stdout) == ajour.Plan.from_json(plan_file.read_text())
    loaded = ajour.load(path, pruned())
    assert [type(loaded.get_submodule(name)).__name__ for name in ("0", "2")] == ["NMLinear", "NMLinear"]


def test_verify_tells_its_model_from_another(converted: Path) -> None:
    result = run("verify", converted, "--against", "factories:pruned", *SHAPE, "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.output)
    assert report["ok"]
    assert report["calls"] == {"nm_linear": 2}
    result = run("verify", converted, "--against", "factories:other", *SHAPE)
    assert result.exit_code == 1
    assert "0: its weight is not the reference's" in result.output


def test_convert_refuses_a_plan_that_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, bad = tmp_path / "made.safetensors", tmp_path / "bad.json"
    assert exits(monkeypatch, "convert", "factories:pruned", "-o", out, "--plan", bad) == 2
    said = capsys.readouterr().err
    assert f"{bad} is no file; make a plan with: ajour plan MODEL -o FILE" in said
    assert said.count("\n") == 1
    bad.write_text("{nope")
    assert exits(monkeypatch, "convert", "factories:pruned", "-o", out, "--plan", bad) == 2
    said = capsys.readouterr().err
    assert f"{bad}: this is no plan: " in said
    assert "make a plan with: ajour plan MODEL -o FILE" in said
    assert not out.exists()


def test_verify_of_a_file_that_is_none_exits_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert exits(monkeypatch, "verify", tmp_path / "none", "--against", "factories:pruned") == 2
    assert "none is no file; expected one that `ajour convert` or ajour.save wrote" in capsys.readouterr().err
    assert exits(monkeypatch, "verify", tmp_path, "--against", "factories:pruned") == 2
    assert "is a folder; expected one" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (("--shape", "4xsixty"), "is no shape"),
        (("--shape", "0x64"), "is no shape"),
        (("--shape", "4x65"), "does not take an input of shape 4x65: RuntimeError: mat1 and mat2 shapes"),
        (("--rows", "1,two"), "is no list of row counts"),
        (("--rows", "0"), "is no list of row counts"),
        (("--dtype", "int4"), "is no dtype of a format here"),
        (("--device", "abacus"), "is no device that ajour runs on"),
        (("--device", "cuda:one"), "is no device that ajour runs on"),
        (("-o", "no/such/folder/plan.json"), "the folder no/such/folder does not exist"),
        (("-o", "."), "is a folder"),
        (("--nonsense",), "No such option"),
    ],
    ids=" ".join,
)
def test_a_usage_error_exits_2_and_measures_nothing(
    args: tuple[str, ...], text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ajour, "plan", lambda *args, **kwargs: pytest.fail("it measured"))
    monkeypatch.setenv("COLUMNS", "400")  # the box around a usage error would break the sentence
    result = run("plan", "factories:pruned", *args)
    assert result.exit_code == 2, result.output
    assert text in result.output


def test_convert_refuses_a_missing_folder_before_it_measures(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(ajour, "plan", lambda *args, **kwargs: pytest.fail("it measured"))
    assert run("convert", "factories:pruned", "-o", tmp_path / "none" / "m.safetensors", *SHAPE).exit_code == 2


@pytest.mark.parametrize("device", ["cuda", "cuda:3"])
def test_a_missing_device_exits_3(
    device: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert exits(monkeypatch, "plan", "factories:pruned", "--device", device) == 3
    assert "or use --device cpu" in capsys.readouterr().err


def test_a_gpu_that_does_not_exist_exits_3(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert exits(monkeypatch, "plan", "factories:pruned", "--device", "cuda:2") == 3
    assert "cuda:2 does not exist; torch sees 2 CUDA devices" in capsys.readouterr().err
