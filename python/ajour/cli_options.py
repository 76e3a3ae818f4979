"""The arguments of the command line: what each means, and how it is refused before anything is measured."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from ajour.integrations.arguments import check_input, check_output, make_folder

Parsed = TypeVar("Parsed")

Model = Annotated[str, typer.Argument(help="a Hugging Face folder, or package.module:factory")]
AnyModel = Annotated[
    str, typer.Argument(help="a Hugging Face folder, package.module:factory, or with --rows a checkpoint file")
]
Shape = Annotated[
    list[str] | None,
    typer.Option(help="shape of the example input, like 32x128, once for each size; default: 1x128, or what fits"),
]
Sizes = Annotated[
    list[str] | None,
    typer.Option(help="shape of the example input, like 32x128, once for each size; default: several that fit"),
]
Rows = Annotated[str, typer.Option(help="rows to plan for, like 1,8,64; default: what the example produces")]
Dtype = Annotated[str, typer.Option(help="float32, bfloat16 or float16; default: as stored")]
Device = Annotated[str, typer.Option(help="cpu or cuda")]
Trainable = Annotated[bool, typer.Option("--trainable", help="time y, dx and dw together, by kernels that train")]
Json = Annotated[bool, typer.Option("--json", help="print JSON instead of a table")]


def asked(parse: Callable[[Any], Parsed], text: object) -> Parsed:
    """parse(text); its ValueError is a usage error."""
    try:
        return parse(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def _output(path: Path | None) -> Path | None:
    return None if path is None else asked(check_output, path)


def _new_output(path: Path) -> Path:
    return asked(make_folder, path)


def _plan_file(path: Path | None) -> Path | None:
    make = "make a plan with: ajour plan MODEL -o FILE"
    return None if path is None else asked(partial(check_input, remedy=make), path)


def _converted_file(path: Path) -> Path:
    return asked(partial(check_input, remedy="expected one that `ajour convert` or ajour.save wrote"), path)


def _page(path: Path | None) -> Path | None:
    """Where a page goes; said at once if there can be none."""
    from ajour.comparison.charts import check_matplotlib

    if path is not None:
        check_matplotlib()
    return _output(path)


def _version(wanted: bool) -> None:
    from ajour.diagnosis import version_line

    if wanted:
        typer.echo(version_line())
        raise typer.Exit


Version = Annotated[
    bool,
    typer.Option("--version", callback=_version, is_eager=True, help="versions of ajour and torch, and the devices"),
]
Html = Annotated[Path | None, typer.Option("--html", callback=_page, help="write a page with charts there")]
PlanOut = Annotated[Path | None, typer.Option("-o", "--output", callback=_output, help="write the plan there, as JSON")]
PlanHtml = Annotated[Path | None, typer.Option("--html", callback=_output, help="write the plan as a page there")]
PlanFile = Annotated[Path | None, typer.Option("--plan", callback=_plan_file, help="a plan made by `ajour plan -o`")]
ProjectedOut = Annotated[
    Path | None, typer.Option("-o", "--output", callback=_output, help="apply it, and save the model there")
]
ModelOut = Annotated[Path, typer.Option("-o", "--output", callback=_output, help="the safetensors file to write")]
Converted = Annotated[Path, typer.Argument(callback=_converted_file, help="a file written by `ajour convert`")]
DemoHtml = Annotated[
    Path,
    typer.Option("--html", callback=_new_output, help="where the page with charts goes; its folder is made"),
]
