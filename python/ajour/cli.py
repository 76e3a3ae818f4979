"""The command line: one verb each, no logic of its own.

Exit codes: 0 fine, 1 a check failed, 2 usage, 3 environment.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from torch import nn

import ajour
from ajour.cli_options import (
    AnyModel,
    Converted,
    DemoHtml,
    Device,
    Dtype,
    Html,
    Json,
    Model,
    ModelOut,
    Parsed,
    PlanFile,
    PlanHtml,
    PlanOut,
    ProjectedOut,
    Rows,
    Shape,
    Sizes,
    Trainable,
    Version,
    asked,
)
from ajour.integrations.arguments import (
    parse_device,
    parse_dtype,
    parse_known_device,
    parse_rows,
    parse_seconds,
    parse_shapes,
)
from ajour.integrations.bare_weights import load_layers
from ajour.integrations.examples import intake, label, make_example, make_several
from ajour.integrations.loading import load_model, read_plan
from ajour.terms.errors import AjourError, FileError, MachineError
from ajour.terms.pattern import parse_pattern

app = typer.Typer(add_completion=False, no_args_is_help=True)

WIDTH = 120  # of the demo's story where no terminal says otherwise
# click's own, which typer has moved; of every mistake in the arguments
UsageError: type[Any] = typer.BadParameter.__mro__[1]


@app.callback()
def options(show_version: Version = False) -> None:
    """Pruned PyTorch models, run fast, exactly and honestly."""


def _show(report: Any, as_json: bool) -> None:
    typer.echo(report.to_json() if as_json else str(report))


def _examples(model: nn.Module, shape: list[str] | None) -> dict[str, Any]:
    """One by each shape; without any, one that should fit."""
    sides = parse_shapes(shape) or [intake(model).one]
    return _fitting(lambda: {label(each): make_example(model, each) for each in sides}, shape)


def _several(model: nn.Module, shape: list[str] | None) -> tuple[dict[str, Any], str | None]:
    """One by each shape; without any, several that should fit, and what was left out of them."""
    return (_examples(model, shape), None) if shape else _fitting(lambda: make_several(model), shape)


def _fitting(make: Callable[[], Parsed], shape: list[str] | None) -> Parsed:
    """make(); where a default shape does not fit, the error says how to give another."""
    try:
        return make()
    except ValueError as error:
        hint = "" if shape else "; give one that it takes, like --shape 1x3x224x224"
        raise typer.BadParameter(f"{error}{hint}") from None


def _layers(
    spec: str, shape: list[str] | None, rows: Sequence[int] | None, dtype: str, device: str, *, run: bool = True
) -> tuple[Any, Any]:
    """(model, examples) to plan for; a file has layers, but no example can run through them. run: make examples."""
    kind, place = asked(parse_dtype, dtype), asked(parse_device, device)
    asked(parse_shapes, shape)
    if Path(spec).is_file() and rows:
        return load_layers(Path(spec), kind, place), None
    model = load_model(spec, kind, place)
    return model, list(_examples(model, shape).values()) if run else None


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
    _show(ajour.inspect(model if model and Path(model).exists() else load_model(model)), as_json)


@app.command()
def limits(
    model: AnyModel,
    shape: Shape = None,
    rows: Rows = "",
    dtype: Dtype = "",
    device: Annotated[str, typer.Option(help="cpu, cuda, or a name such as 'H100 SXM' or 'RTX 4090'")] = "cpu",
    as_json: Json = False,
) -> None:
    """Before you prune: what each pattern could gain at best, beside fp8 and int4 dense."""
    counts, where = asked(parse_rows, rows), asked(parse_known_device, device)
    loaded, examples = _layers(
        model, shape, counts, dtype, "cpu" if isinstance(where, str) else device, run=shape is not None or not counts
    )
    _show(ajour.limits(loaded, examples, where, rows=counts), as_json)


@app.command()
def project(
    model: Model,
    pattern: Annotated[str, typer.Argument(help="2:4, unstructured, or 'block 16x16'")],
    output: ProjectedOut = None,
    shape: Shape = None,
    lose: Annotated[float | None, typer.Option(help="share of energy that blocks may lose; default: 0.01")] = None,
    permute: Annotated[bool, typer.Option(help="look for an order of in features that loses less")] = False,
    as_json: Json = False,
) -> None:
    """What fitting a pattern would cost each layer; with a shape, each output too. Changes nothing without -o."""
    wanted, loaded = asked(parse_pattern, pattern), load_model(model)
    examples = None if shape is None else list(_examples(loaded, shape).values())
    report = ajour.project(loaded, wanted, examples, lose=lose, permute=permute)
    _show(report, as_json)
    if output is not None:
        ajour.save(report.apply(loaded), output)
        typer.echo(f"wrote {output}, with it applied", err=as_json)


@app.command()
def plan(
    model: AnyModel,
    shape: Shape = None,
    rows: Rows = "",
    dtype: Dtype = "",
    device: Device = "cpu",
    trainable: Trainable = False,
    output: PlanOut = None,
    html: PlanHtml = None,
    as_json: Json = False,
) -> None:
    """Measures every layer on this device and says what pays."""
    from ajour.comparison.plan_page import write_plan_page

    counts = asked(parse_rows, rows)
    loaded, examples = _layers(model, shape, counts, dtype, device)
    made = ajour.plan(loaded, examples, rows=counts, trainable=trainable)
    if output is not None:
        output.write_text(made.to_json(), encoding="utf-8")
    _show(made, as_json)
    if html is not None:
        write_plan_page(html, f"{model}: the plan", made)
        typer.echo(f"wrote {html}", err=as_json)


@app.command()
def convert(
    model: Model,
    output: ModelOut,
    shape: Shape = None,
    rows: Rows = "",
    dtype: Dtype = "",
    device: Device = "cpu",
    plan_file: PlanFile = None,
    as_json: Json = False,
) -> None:
    """Plans (or takes a plan), converts, and saves one file that `ajour.load` reads."""
    asked(parse_shapes, shape)  # before anything is loaded
    counts = asked(parse_rows, rows)
    made = None if plan_file is None else read_plan(plan_file)
    loaded = load_model(model, asked(parse_dtype, dtype), asked(parse_device, device))
    if made is None:
        made = ajour.plan(loaded, list(_examples(loaded, shape).values()), rows=counts)
    ajour.save(ajour.convert(loaded, made), output)
    _show(made, as_json)
    typer.echo(f"wrote {output} ({output.stat().st_size / 1e6:.1f} MB)", err=as_json)


@app.command()
def bench(
    model: Model,
    shape: Sizes = None,
    rows: Rows = "",
    dtype: Dtype = "",
    device: Device = "cpu",
    compiled: Annotated[bool, typer.Option("--compile/--no-compile", help="compare with torch.compile too")] = True,
    seconds: Annotated[float, typer.Option(help="of timing for each size")] = 2.0,
    html: Html = None,
    as_json: Json = False,
) -> None:
    """The whole model: as torch runs it, compiled, on the best dense kernels, and converted; verified, and by layer."""
    from ajour.comparison import compare
    from ajour.comparison.page import write_page

    asked(parse_shapes, shape)  # before anything is loaded
    counts, pause = asked(parse_rows, rows), asked(parse_seconds, seconds)
    loaded = load_model(model, asked(parse_dtype, dtype), asked(parse_device, device))
    examples, left_out = _several(loaded, shape)
    found = compare(loaded, examples, name=model, rows=counts, compiled=compiled, seconds=pause)
    found = replace(found, notes=(*found.notes, left_out)) if left_out else found
    _show(found, as_json)
    if html is not None:
        write_page(html, f"{model}: dense and converted", "One pass of the whole model, dense and converted.", [found])
        typer.echo(f"wrote {html}", err=as_json)
    if not found.ok:
        raise typer.Exit(1)


@app.command()
def verify(
    file: Converted,
    against: Annotated[str, typer.Option(help="the dense model: a Hugging Face folder, or package.module:factory")],
    shape: Shape = None,
    dtype: Dtype = "",
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Compares a converted file with its dense model: outputs, formats, op calls really made, resident bytes."""
    asked(parse_shapes, shape)  # before anything is loaded
    load = partial(load_model, against, asked(parse_dtype, dtype), asked(parse_device, device))
    reference = load()
    converted = ajour.load(file, load())
    report = ajour.verify(converted, reference, list(_examples(reference, shape).values()))
    _show(report, as_json)
    if not report.ok:
        raise typer.Exit(1)


@app.command()
def demo(
    html: DemoHtml = Path("out/demo.html"),
    as_json: Json = False,
) -> None:
    """The main job on a real model: MiniLM pruned, planned, converted, checked and timed."""
    from ajour.demo import run, to_json

    terminal = Console(stderr=as_json)
    found = run(terminal if terminal.is_terminal else Console(stderr=as_json, width=WIDTH), html)
    if as_json:
        typer.echo(to_json(found))
    if not all(case.ok for case in found):
        raise typer.Exit(1)


def main() -> None:
    """Runs the command line; every mistake and every error raised on purpose becomes one line and an exit code."""
    try:
        sys.exit(app(standalone_mode=False) or 0)
    except UsageError as error:
        where = error.ctx.command_path if error.ctx else "ajour"
        if type(error).__name__ == "NoArgsIsHelpError":
            error.show()
        else:
            _say(f"{error.format_message()} ({where} --help says more)")
        sys.exit(2)
    except typer.Abort:
        _say("stopped")
        sys.exit(130)
    except AjourError as error:
        _say(str(error))
        sys.exit(3 if isinstance(error, MachineError) else 2 if isinstance(error, FileError) else 1)
    except OSError as error:  # a disk that is full, a file that became unwritable
        _say(f"could not read or write: {error}")
        sys.exit(3)


def _say(text: str) -> None:
    Console(stderr=True).print(f"[bold red]error:[/] {escape(text)}", highlight=False, soft_wrap=True)
