"""python -m benchmarks ops|models|tokens|train measures; compare, check, crossover and readme read result files."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks import results
from benchmarks.tables import line, summary

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
WIDTH = 120  # where no terminal says otherwise
Cells = Iterator[tuple[str, list[dict[str, Any]]]]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    for suite, what in (
        ("ops", "every kernel and peer against the best dense, on layers of real models"),
        ("models", "whole models, stock, compiled and on the best dense kernels against converted"),
        ("tokens", "decoding with a model of Llama-3-8B's shape, tokens per second"),
        ("train", "masked optimizers against torch's own"),
    ):
        _suite(verbs.add_parser(suite, help=what, description=what))
    compare = verbs.add_parser("compare", help="two result files, row by row")
    compare.add_argument("file", type=Path)
    compare.add_argument("--against", type=Path, required=True, metavar="FILE", help="the older one")
    check = verbs.add_parser("check", help="the committed results against targets.toml: met, missed or not measured")
    check.add_argument("--json", action="store_true")
    check.add_argument("--strict", action="store_true", help="exit 1 if a target is missed")
    check.add_argument("--results", type=Path, default=results.ROOT / "results", metavar="FOLDER")
    crossover = verbs.add_parser("crossover", help="which kernel wins at which number of rows")
    crossover.add_argument("paths", type=Path, nargs="*", default=[results.ROOT / "results"], help="files or folders")
    crossover.add_argument("--pattern", default="2:4")
    readme = verbs.add_parser("readme", help="write the README's tables anew from the committed results")
    readme.add_argument("--check", action="store_true", help="write nothing; exit 1 if they are stale")
    return parser


def _suite(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--smoke", action="store_true", help="small and short: shows that the suite works, nothing more")
    add("--json", type=Path, metavar="FILE", help="write the result there, after every cell")
    add(
        "--save", nargs="?", const="", metavar="PART",
        help="write benchmarks/results/<device>/<suite>.json, or <suite>-PART.json beside it",
    )  # fmt: skip
    add("--against", type=Path, metavar="FILE", help="compare what was measured with an older result file")
    add("--device", default="cpu", help="cpu or cuda")
    add("--threads", default="1", help="numbers of CPU threads, like 1,2")
    add("--dtypes", default="", help="like float32,bfloat16; default: both on a CPU, bfloat16 on a GPU")
    add("--shapes", default="", help="layers by name, like 'Llama-3-8B,ViT-H' (ops)")
    add("--rows", default="", help="rows of x, like 1,128; default: those a pattern is meant for (ops)")
    add("--only", default="", help="cells whose name holds one of these texts, like '2:4,block 32x32 10%%'")
    add("--seconds", type=float, default=0.3, help="time for each cell")
    add("--modes", default="", help="graph, eager or both on a GPU; default: both")
    add(
        "--continue",
        dest="resume",
        action="store_true",
        help="keep the rows of --json, measure the cells it lacks (ops)",
    )
    add("--commit", default="", metavar="SHA", help="what is measured, where there is no .git to ask")
    add("--no-gradients", action="store_true", help="leave the products of training out (ops)")
    add("--no-peers", action="store_true", help="leave torch's own sparse tensors out (ops)")
    add(
        "--compile-seconds", type=float, default=120.0,
        help="time for torch.compile, for each model; sizes beyond it are left out, aloud (models)",
    )  # fmt: skip
    add("--no-compile", action="store_true", help="leave torch.compile out, which tunes itself for every cell")


def main(arguments: Sequence[str] | None = None, console: Console | None = None) -> int:
    """Runs a verb; 1 if a kernel was wrong, or if what was to be checked did not hold."""
    asked = _parser().parse_args(arguments)
    console = console or Console(width=None if Console().is_terminal else WIDTH)
    try:
        return VERBS.get(asked.verb, _measure)(asked, console)
    except ValueError as error:
        print(f"python -m benchmarks: {error}", file=sys.stderr)  # noqa: T201
        return 2


def _compare(asked: argparse.Namespace, console: Console) -> int:
    from benchmarks.against import compare

    console.print(compare(results.read(asked.file), results.read(asked.against)), highlight=False)
    return 0


def _check(asked: argparse.Namespace, console: Console) -> int:
    from benchmarks.check import main as check

    return check(asked.results, console, as_json=asked.json, strict=asked.strict)


def _crossover(asked: argparse.Namespace, console: Console) -> int:
    from benchmarks.crossover import main as crossover

    return crossover(asked.paths, asked.pattern, console)


def _readme(asked: argparse.Namespace, console: Console) -> int:
    from benchmarks.readme import main as readme

    return readme(console, write=not asked.check)


VERBS: dict[str, Callable[[argparse.Namespace, Console], int]] = {
    "compare": _compare,
    "check": _check,
    "crossover": _crossover,
    "readme": _readme,
}


def _measure(asked: argparse.Namespace, console: Console) -> int:
    device = torch.device(asked.device)
    rows = _known(asked, device)
    saved = None if asked.save is None else results.place(asked.verb, device, asked.save)
    paths = [path for path in (asked.json, saved) if path]
    older = results.read(asked.against) if asked.against else None
    threads = [int(count) for count in asked.threads.split(",")]
    said: set[str] = set()
    keeper, stood = results.Keeper(paths, device, rows, asked.commit), len(rows)
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # as `timeout` ends a suite
    try:
        for name, found in SUITES[asked.verb](asked, device, threads, console):
            rows += found
            for row in found:
                if row.get("reason") is None or row["reason"] not in said:  # a peer refuses every cell for one reason
                    console.print(line(name, row), highlight=False, soft_wrap=True, markup=False)
                said.add(row.get("reason") or "")
            keeper.write()
    finally:
        signal.signal(signal.SIGTERM, before)
        if len(rows) > stood:
            keeper.write(at_once=True)
    wrong = [row for row in rows if row.get("op") != "peer" and (row.get("error_ratio") or 0) > 1]
    if asked.verb == "ops" and rows:
        console.print(summary(rows))
    if older is not None:
        from benchmarks.against import compare

        console.print(compare(results.result(device, rows, asked.commit), older), highlight=False)
    console.print(
        f"{len(rows)} rows, {len(wrong)} wrong" + "".join(f"; wrote {path}" for path in paths), highlight=False
    )
    return 1 if wrong else 0


def _known(asked: argparse.Namespace, device: torch.device) -> list[dict[str, Any]]:
    """The rows that --continue keeps, and none of another device."""
    if not asked.resume or asked.json is None or not asked.json.exists() or asked.verb != "ops":
        return []
    found = results.read(asked.json)
    if (here := results.device_facts(device)["name"]) != found["device"]["name"]:
        raise ValueError(f"--continue: {asked.json} was measured on {found['device']['name']}, this is {here}")
    kept: list[dict[str, Any]] = found["rows"]
    return kept


def _dtypes(asked: argparse.Namespace, device: torch.device) -> list[torch.dtype]:
    names = asked.dtypes or ("bfloat16" if device.type == "cuda" else "float32,bfloat16")
    unknown = [name for name in names.split(",") if name not in DTYPES]
    if unknown:
        raise ValueError(f"{unknown[0]!r} is no dtype here; expected some of {', '.join(DTYPES)}")
    return [DTYPES[name] for name in names.split(",")]


def _modes(asked: argparse.Namespace, device: torch.device) -> tuple[str, ...]:
    """Eager calls everywhere, and replays of a CUDA graph."""
    can = ("graph", "eager") if device.type == "cuda" else ("eager",)
    modes = tuple(asked.modes.split(",")) if asked.modes else can
    if not set(modes) <= set(can):
        raise ValueError(f"--modes {asked.modes}: on {device.type} there is {' and '.join(can)}")
    return modes


def _ops(asked: argparse.Namespace, device: torch.device, threads: list[int], console: Console) -> Cells:
    from benchmarks import cases, shapes
    from benchmarks.ops import Settings, cell_of, run

    every = cases.smoke_cases() if asked.smoke else cases.cases(device.type)
    places = shapes.SMOKE if asked.smoke and not asked.shapes else shapes.named(asked.shapes, device.type)
    settings = Settings(
        places,
        every,
        _dtypes(asked, device),
        threads,
        device,
        rows=[int(m) for m in asked.rows.split(",")] if asked.rows else None,
        only=asked.only.split(","),
        seconds=0.002 if asked.smoke else asked.seconds,
        smoke=asked.smoke,
        peers=not asked.no_peers,
        gradients=not asked.no_gradients,
        compiled=device.type == "cuda" and not asked.no_compile,
        modes=_modes(asked, device),
        known=frozenset(map(cell_of, _known(asked, device))),
    )
    return run(settings)


def _models(asked: argparse.Namespace, device: torch.device, threads: list[int], console: Console) -> Cells:
    from benchmarks.models import Settings, run
    from benchmarks.subjects import smoke_subjects, subjects

    every = smoke_subjects() if asked.smoke else subjects(device.type)
    chosen = [each for each in every if any(text in f"{each} {each.dtype}" for text in asked.only.split(","))]
    if asked.dtypes:
        wanted = _dtypes(asked, device)
        chosen = [each for each in chosen if each.dtype in wanted]
    if not chosen:
        raise ValueError(f"--only and --dtypes leave none of the models {', '.join(dict.fromkeys(map(str, every)))}")
    seconds = 0.05 if asked.smoke else max(asked.seconds, 2.0)
    compiled = not asked.no_compile and not asked.smoke
    settings = Settings(chosen, threads, device, seconds, compiled, asked.compile_seconds, _modes(asked, device))
    return run(settings, lambda plan: console.print(str(plan), highlight=False, soft_wrap=True))


def _tokens(asked: argparse.Namespace, device: torch.device, threads: list[int], console: Console) -> Cells:
    from benchmarks.tokens import run, smoke_subjects, subjects

    every = smoke_subjects() if asked.smoke else subjects()
    chosen = [each for each in every if any(text in f"{each.name} {each.pattern}" for text in asked.only.split(","))]
    seconds = 0.05 if asked.smoke else max(asked.seconds, 2.0)
    return run(chosen, threads, device, seconds, lambda plan: console.print(str(plan), highlight=False, soft_wrap=True))


def _train(asked: argparse.Namespace, device: torch.device, threads: list[int], console: Console) -> Cells:
    from benchmarks.train import Settings, run

    return run(
        Settings(
            threads=threads,
            dtypes=_dtypes(asked, device),
            device=device,
            seconds=0.002 if asked.smoke else max(asked.seconds, 3.0),
            smoke=asked.smoke,
            only=asked.only,
        )
    )


SUITES: dict[str, Callable[[argparse.Namespace, torch.device, list[int], Console], Cells]] = {
    "ops": _ops,
    "models": _models,
    "tokens": _tokens,
    "train": _train,
}

if __name__ == "__main__":
    raise SystemExit(main())
