"""The command line: limits, bench, plans of bare files, and how mistakes are told."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner, Result

import ajour
from ajour import cli
from ajour.comparison import Comparison
from ajour.roofline import limiting
from ajour.roofline.facts import DeviceFacts
from factories import pruned
from hand_plan import hand_plan

SHAPES = ("--shape", "4x64", "--shape", "8x64")


def run(*args: object) -> Result:
    return CliRunner().invoke(cli.app, [str(arg) for arg in args])


def unwrapped(result: Result) -> str:
    """What was said, out of the frame that breaks it into lines."""
    return " ".join(result.output.replace("│", " ").split())


def exits(monkeypatch: pytest.MonkeyPatch, *args: object) -> int:
    """The exit code of `ajour ARGS`."""
    monkeypatch.setattr(sys, "argv", ["ajour", *map(str, args)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    return int(stop.value.code or 0)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A checkpoint file without its model."""
    path = tmp_path / "weights.safetensors"
    save_file({name: value.contiguous() for name, value in pruned().state_dict().items()}, path)
    return path


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A comparison that plans nothing and measures for a moment."""
    real = ajour.comparison.compare

    def compare(model: torch.nn.Module, examples: Any, **settings: Any) -> Comparison:
        return real(model, examples, **{**settings, "plan": hand_plan(model), "seconds": 0.01})

    monkeypatch.setattr("ajour.comparison.compare", compare)


def test_bench_measures_every_shape_and_writes_a_page(quick: None, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    result = run("bench", "factories:pruned", *SHAPES, "--no-compile", "--html", page, "--json")
    assert result.exit_code == 0, result.output
    made = json.loads(result.stdout)
    assert [size["size"] for size in made["sizes"]] == ["4x64", "8x64"]
    assert f"wrote {page}" in result.stderr
    assert "factories:pruned" in page.read_text()


def test_bench_prints_a_table(quick: None) -> None:
    result = run("bench", "factories:pruned", *SHAPES, "--no-compile")
    assert result.exit_code == 0, result.output
    for said in ("4x64", "8x64", "where the time goes", "resident:", "verified:"):
        assert said in result.output


def test_bench_exits_1_where_the_verification_fails(quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Comparison, "ok", False)
    assert run("bench", "factories:pruned", *SHAPES, "--no-compile").exit_code == 1


@pytest.mark.parametrize("verb", ["limits", "plan", "bench"])
def test_a_default_shape_that_does_not_fit_asks_for_one_that_does(verb: str) -> None:
    result = run(verb, "factories:reshaping")  # takes pictures, and does not show it
    assert result.exit_code == 2
    assert "--shape 1x3x224x224" in unwrapped(result)
    result = run(verb, "factories:pruned", "--shape", "4x63")
    assert result.exit_code == 2
    assert "224" not in result.output


def test_limits_at_given_rows_run_no_example() -> None:
    result = run("limits", "factories:pruned", "--rows", "4", "--device", "H100 SXM", "--json")
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize("seconds", ["0", "-1", "1e9", "nan"])
def test_bench_refuses_a_time_that_is_none(seconds: str) -> None:
    assert run("bench", "factories:pruned", "--seconds", seconds).exit_code == 2


def test_limits_of_a_named_device_need_no_measuring(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limiting, "facts_of", lambda *args: pytest.fail("it measured"))
    result = run("limits", "factories:pruned", *SHAPES, "--device", "h200", "--json")
    assert result.exit_code == 0, result.output
    made = json.loads(result.output)
    assert (made["device"], [size["rows"] for size in made["sizes"]]) == ("H200", [4, 8])


def test_limits_of_this_device(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = DeviceFacts("this one", 40e3, {"float32": 250e3}, None, "made up")
    monkeypatch.setattr(limiting, "facts_of", lambda *args: facts)
    result = run("limits", "factories:pruned", "--shape", "4x64")
    assert result.exit_code == 0, result.output
    assert "At 4 rows, at most: 2:4" in result.output


def test_an_unknown_device_of_limits_is_a_usage_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exits(monkeypatch, "limits", "factories:pruned", "--device", "H1000") == 2
    message = capsys.readouterr().err
    assert "expected cpu, cuda, or one of H100 SXM" in message
    assert message.count("\n") == 1


def test_a_bare_file_can_be_planned_for_rows(weights: Path) -> None:
    result = run("plan", weights, "--rows", "1,8", "--json")
    assert result.exit_code == 0, result.output
    made = ajour.Plan.from_json(result.stdout)
    assert [choice.layer for choice in made.choices] == ["0", "2"]
    assert [measurement.rows for measurement in made["0"].measurements] == [1, 8]


def test_a_bare_file_has_limits_for_rows(weights: Path) -> None:
    result = run("limits", weights, "--rows", "1,8", "--device", "H100 SXM", "--json")
    assert result.exit_code == 0, result.output
    assert [size["rows"] for size in json.loads(result.stdout)["sizes"]] == [1, 8]


@pytest.mark.parametrize("verb", ["plan", "limits", "bench", "project 2:4", "convert -o made", "verify --against"])
def test_a_bare_file_can_not_run_and_says_what_does(
    verb: str, weights: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    name, *options = verb.split()
    args = [weights, *options] if name != "verify" else [weights, *options, weights]
    assert exits(monkeypatch, name, *args) == 2
    message = capsys.readouterr().err
    assert f"{weights} is a file, which holds weights but no model to run" in message
    assert "with --rows" in message
    assert message.count("\n") == 1
    assert not (tmp_path / "made").exists()


def test_a_bare_file_without_linear_layers_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "norms.safetensors"
    save_file({"norm.weight": torch.ones(8)}, path)
    assert exits(monkeypatch, "plan", path, "--rows", "8") == 2
    assert "holds no weight of a linear layer; `ajour inspect" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (("bench",), "Missing argument"),
        (("bench", "factories:pruned", "--shape", "4xsixty"), "is no shape"),
        (("plan", "factories:pruned", "--nonsense"), "No such option: --nonsense"),
        (("nonsense",), "No such command 'nonsense'"),
    ],
    ids=" ".join,
)
def test_a_mistake_in_the_arguments_is_one_line(
    args: tuple[str, ...], text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exits(monkeypatch, *args) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert text in message
    assert "--help says more" in message
    assert message.count("\n") == 1


def test_without_a_verb_the_help_is_shown(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert exits(monkeypatch) == 2
    out = capsys.readouterr()
    assert "doctor" in out.out + out.err


def test_the_demo_refuses_a_page_that_can_not_be_written_before_it_measures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ajour.demo.run", lambda *args: pytest.fail("it measured"))
    (tmp_path / "file").write_text("")
    assert run("demo", "--html", tmp_path / "file" / "demo.html").exit_code == 2
    monkeypatch.setattr("ajour.demo.run", lambda *args: [])
    assert run("demo", "--html", tmp_path / "new" / "demo.html", "--json").output == "[]\n"
    assert (tmp_path / "new").is_dir()


@pytest.mark.parametrize(
    "verb", ["doctor", "inspect", "limits", "project", "plan", "convert", "bench", "verify", "demo"]
)
def test_every_verb_can_print_json(verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    result = run(verb, "--help")
    assert result.exit_code == 0, result.output
    assert "--json" in result.output


def test_a_size_that_no_memory_holds_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exits(monkeypatch, "plan", "factories:pruned", "--shape", "99999999999999x64") == 2
    assert "no input of shape 99999999999999x64 can be made here: " in capsys.readouterr().err
    assert exits(monkeypatch, "plan", "factories:pruned", "--shape", "4x64", "--rows", "99999999999999") == 3
    said = capsys.readouterr().err
    assert "0: 99999999999999 rows can't be held here: " in said
    assert said.rstrip().endswith("plan for fewer")
