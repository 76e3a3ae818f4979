"""The command line: one verb each, no logic of its own.

Exit codes: 0 fine, 1 a check failed, 2 usage, 3 environment.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.markup import escape

import ajour
from ajour.integrations.loading import load_model, make_example, parse_shape
from ajour.planning.plan import Plan
from ajour.terms.errors import AjourError, FileError, MachineError

app = typer.Typer(
    add_completion=False, no_args_is_help=True, help="Pruned PyTorch models, run fast, exactly and honestly."
)

Model = Annotated[str, typer.Argument(help="a Hugging Face folder, or package.module:factory")]
Shape = Annotated[str, typer.Option(help="shape of the example input, like 32x128")]
Rows = Annotated[str, typer.Option(help="rows to plan for, like 1,8,64; default: what the example produces")]
Dtype = Annotated[str, typer.Option(help="float32, bfloat16 or float16; default: as stored")]
Device = Annotated[str, typer.Option(help="cpu or cuda")]
Json = Annotated[bool, typer.Option("--json", help="print JSON instead of a table")]


def _dtype(name: str) -> torch.dtype | None:
    if not name:
        return None
    if name not in ("float32", "bfloat16", "float16"):
        raise typer.BadParameter(f"{name!r} is not one of float32, bfloat16, float16")
    return getattr(torch, name)  # type: ignore[no-any-return]


def _shape(text: str) -> tuple[int, ...]:
    try:
        return parse_shape(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def _rows(text: str) -> list[int] | None:
    try:
        return [int(part) for part in text.split(",")] if text else None
    except ValueError:
        raise typer.BadParameter(f"{text!r} is no list of row counts; expected something like 1,8,64") from None


def _show(report: object, as_json: bool) -> None:
    if as_json:
        typer.echo(report.to_json())  # type: ignore[attr-defined]
    else:
        typer.echo(str(report))


@app.command()
def doctor(as_json: Json = False) -> None:
    """What this machine has: torch, Triton, CUDA, instruction sets, kernels with a self-test each."""
    from ajour.diagnosis import diagnose

    diagnosis = diagnose()
    _show(diagnosis, as_json)
    if not diagnosis.ok:
        raise typer.Exit(3)


@app.command()
def inspect(
    model: Annotated[str, typer.Argument(help="a Hugging Face folder, a checkpoint file, or package.module:factory")],
    as_json: Json = False,
) -> None:
    """Pattern and density of every layer; changes and measures nothing."""
    path = Path(model)
    _show(ajour.inspect(path if path.exists() else load_model(model)), as_json)


@app.command()
def plan(
    model: Model,
    shape: Shape = "1x128",
    rows: Rows = "",
    dtype: Dtype = "",
    device: Device = "cpu",
    output: Annotated[Path | None, typer.Option("-o", "--output", help="write the plan there, as JSON")] = None,
    as_json: Json = False,
) -> None:
    """Measures every layer on this device and says what pays."""
    loaded = load_model(model, _dtype(dtype), device)
    made = ajour.plan(loaded, make_example(loaded, _shape(shape)), rows=_rows(rows))
    if output is not None:
        output.write_text(made.to_json())
    _show(made, as_json)


@app.command()
def convert(
    model: Model,
    output: Annotated[Path, typer.Option("-o", "--output", help="the safetensors file to write")],
    shape: Shape = "1x128",
    rows: Rows = "",
    dtype: Dtype = "",
    device: Device = "cpu",
    plan_file: Annotated[Path | None, typer.Option("--plan", help="a plan made by `ajour plan -o`")] = None,
) -> None:
    """Plans (or takes a plan), converts, and saves one file that `ajour.load` reads."""
    loaded = load_model(model, _dtype(dtype), device)
    if plan_file is None:
        made = ajour.plan(loaded, make_example(loaded, _shape(shape)), rows=_rows(rows))
    elif plan_file.is_file():
        made = Plan.from_json(plan_file.read_text(encoding="utf-8", errors="replace"))
    else:
        raise FileError(f"{plan_file} is no file; make a plan with: ajour plan MODEL -o {plan_file}")
    ajour.save(ajour.convert(loaded, made), output)
    typer.echo(str(made))
    typer.echo(f"wrote {output} ({output.stat().st_size / 1e6:.1f} MB)")


@app.command()
def verify(
    file: Annotated[Path, typer.Argument(help="a file written by `ajour convert`")],
    against: Annotated[str, typer.Option(help="the dense model: a Hugging Face folder, or package.module:factory")],
    shape: Shape = "1x128",
    dtype: Dtype = "",
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Compares a converted file with its dense model: outputs, formats, op calls really made, resident bytes."""
    reference = load_model(against, _dtype(dtype), device)
    converted = ajour.load(file, load_model(against, _dtype(dtype), device))
    report = ajour.verify(converted, reference, make_example(reference, _shape(shape)))
    _show(report, as_json)
    if not report.ok:
        raise typer.Exit(1)


@app.command()
def demo() -> None:
    """The main job on a real model: MiniLM pruned, planned, converted, checked and timed."""
    from ajour.demo import run

    if not run(Console()):
        raise typer.Exit(1)


def main() -> None:
    """Runs the command line; every error that ajour raises on purpose becomes one line and an exit code."""
    try:
        app()
    except MachineError as error:
        Console(stderr=True).print(f"[bold red]error:[/] {escape(str(error))}", highlight=False)
        sys.exit(3)
    except AjourError as error:
        Console(stderr=True).print(f"[bold red]error:[/] {escape(str(error))}", highlight=False)
        sys.exit(1)
