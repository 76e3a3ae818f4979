"""The command line: one verb each, no logic of its own.

Exit codes: 0 fine, 1 a check failed, 2 usage, 3 environment.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console
from rich.markup import escape

import ajour
from ajour.integrations.arguments import check_output, parse_device, parse_dtype, parse_rows, parse_shape
from ajour.integrations.loading import load_model, make_example, read_plan
from ajour.terms.errors import AjourError, MachineError

app = typer.Typer(
    add_completion=False, no_args_is_help=True, help="Pruned PyTorch models, run fast, exactly and honestly."
)

Model = Annotated[str, typer.Argument(help="a Hugging Face folder, or package.module:factory")]
Shape = Annotated[str, typer.Option(help="shape of the example input, like 32x128")]
Rows = Annotated[str, typer.Option(help="rows to plan for, like 1,8,64; default: what the example produces")]
Dtype = Annotated[str, typer.Option(help="float32, bfloat16 or float16; default: as stored")]
Device = Annotated[str, typer.Option(help="cpu or cuda")]
Json = Annotated[bool, typer.Option("--json", help="print JSON instead of a table")]


Parsed = TypeVar("Parsed")


def _asked(parse: Callable[[Any], Parsed], text: object) -> Parsed:
    """parse(text); its ValueError is a usage error."""
    try:
        return parse(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def _output(path: Path | None) -> Path | None:
    return None if path is None else _asked(check_output, path)


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
    output: Annotated[
        Path | None, typer.Option("-o", "--output", callback=_output, help="write the plan there, as JSON")
    ] = None,
    as_json: Json = False,
) -> None:
    """Measures every layer on this device and says what pays."""
    sides, counts = _asked(parse_shape, shape), _asked(parse_rows, rows)
    loaded = load_model(model, _asked(parse_dtype, dtype), _asked(parse_device, device))
    made = ajour.plan(loaded, _asked(partial(make_example, loaded), sides), rows=counts)
    if output is not None:
        output.write_text(made.to_json(), encoding="utf-8")
    _show(made, as_json)


@app.command()
def convert(
    model: Model,
    output: Annotated[Path, typer.Option("-o", "--output", callback=_output, help="the safetensors file to write")],
    shape: Shape = "1x128",
    rows: Rows = "",
    dtype: Dtype = "",
    device: Device = "cpu",
    plan_file: Annotated[Path | None, typer.Option("--plan", help="a plan made by `ajour plan -o`")] = None,
    as_json: Json = False,
) -> None:
    """Plans (or takes a plan), converts, and saves one file that `ajour.load` reads."""
    sides, counts = _asked(parse_shape, shape), _asked(parse_rows, rows)
    made = None if plan_file is None else read_plan(plan_file)
    loaded = load_model(model, _asked(parse_dtype, dtype), _asked(parse_device, device))
    if made is None:
        made = ajour.plan(loaded, _asked(partial(make_example, loaded), sides), rows=counts)
    ajour.save(ajour.convert(loaded, made), output)
    _show(made, as_json)
    typer.echo(f"wrote {output} ({output.stat().st_size / 1e6:.1f} MB)", err=as_json)


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
    sides = _asked(parse_shape, shape)
    load = partial(load_model, against, _asked(parse_dtype, dtype), _asked(parse_device, device))
    reference = load()
    converted = ajour.load(file, load())
    report = ajour.verify(converted, reference, _asked(partial(make_example, reference), sides))
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
    except AjourError as error:
        Console(stderr=True).print(f"[bold red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        sys.exit(3 if isinstance(error, MachineError) else 1)
