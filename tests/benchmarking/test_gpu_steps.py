"""What `make gpu` measures is what the targets ask for: no target of the ops suite stays without its cells."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from benchmarks import __main__ as command
from benchmarks.cases import cases, tiny_cases
from benchmarks.gradients import trained
from benchmarks.shapes import TINY, named
from benchmarks.targets import Target, judge, load

from ajour.planning.candidates import Form

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "gpu.sh"
PEERS = ("cuSPARSELt, searched", "torch bsr triton")
FOUND = dict.fromkeys(("speedup", "limit_fraction", "sparse_us", "dense_us", "pack_us"), 1.0)
TARGETS = [target for target in load() if target.device == "sm_90" and target.suite == "ops"]


def steps() -> Iterator[Any]:
    """The arguments of every step of the script that measures layers."""
    for line in SCRIPT.read_text().replace("\\\n", " ").splitlines():
        if found := re.match(r"measure \w+ \d+ ops (.*)", line):
            yield command._parser().parse_args(["ops", "--device", "cuda", *shlex.split(found[1])])


def cells(asked: Any) -> Iterator[dict[str, Any]]:
    """The rows of a step, but for their figures."""
    rows = [int(m) for m in asked.rows.split(",")] if asked.rows else None
    for shape, (n, k) in named(asked.shapes, "cuda").items():
        for case in tiny_cases("cuda") if shape in TINY else cases("cuda"):
            if not any(text in f"{shape} {case}" for text in asked.only.split(",")):
                continue
            op = "scaled_nm_linear" if case.values else Form(case.pattern).op.name
            named_so = {"op": op, "pattern": str(case.pattern), "density": round(case.density, 4), "mask": case.mask}
            sizes = {"shape": shape, "n": n, "k": k, "dtype": "bfloat16", "threads": 1, **FOUND}
            for m in rows or case.rows:
                for mode in asked.modes.split(","):
                    yield {**named_so, **sizes, "m": m, "mode": mode}
            for m in () if asked.no_gradients else trained(case, rows or case.rows):
                yield {**named_so, **sizes, "m": m, "mode": "eager", "product": "step"}


@pytest.fixture(scope="module")
def measured() -> list[dict[str, Any]]:
    """A result as it would be, whichever kernel serves a cell."""
    rows = [row for asked in steps() for row in cells(asked)]
    peers = [{**row, "op": "peer", "kernel": peer} for row in rows for peer in PEERS]
    return [{**row, "kernel": "cuda_sm90"} for row in rows] + peers


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_every_target_of_a_gpu_has_its_cells(target: Target, measured: list[dict[str, Any]]) -> None:
    verdict = judge(target, measured)
    assert verdict.status != "not measured", f"{verdict.cells} of {target.cells} cells"
