"""The crossover table: each kernel's best at each number of rows, right answers only, dense beside them."""

from __future__ import annotations

from pathlib import Path

import pytest
from benchmarks.crossover import main, meetings
from rich.console import Console

from result_rows import result, row, save

GRAPH = {"op": "nm_linear", "pattern": "2:4", "dtype": "bfloat16", "mode": "graph"}


def of(kernel: str, m: int, us: float, **more: object) -> dict[str, object]:
    return row(**{**GRAPH, "kernel": kernel, "m": m, "sparse_us": us, "dense_us": 20.0, **more})


ROWS = [
    of("cuda_decode", 1, 10.0),
    of("cuda_decode", 1, 9.0, config="c1 s4"),
    of("triton", 1, 1.0, speedup=None),  # wrong
    of("triton", 1, 1.0, product="dx"),
    of("cuda_sm90", 4096, 15.0),
    of("cuSPARSELt, searched", 4096, 16.0, op="peer", dense_us=19.0),
    of("cuda_sm90", 16384, 30.0, shape="b"),
]


def test_each_meeting_holds_the_best_right_time_of_every_kernel_and_dense() -> None:
    first, second, third = meetings(ROWS, "2:4")
    assert (first.m, first.times, first.winner) == (1, {"dense": 20.0, "cuda_decode": 9.0}, "cuda_decode")
    assert second.times == {"dense": 20.0, "cuda_sm90": 15.0, "cuSPARSELt, searched": 16.0}
    assert (third.shape, third.winner) == ("b", "dense")
    assert meetings(ROWS, "1:4") == []


def test_the_table_says_who_wins_where(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = save(tmp_path, "h100", "ops-crossover.json", result(ROWS, sm="sm_90"))
    for path in (folder, folder / "h100" / "ops-crossover.json"):
        assert main([path], "2:4", Console(width=200)) == 0
        said = capsys.readouterr().out.split("\n")
        assert [line.split()[-2:] for line in said if line.startswith(("a ", "b "))] == [
            ["cuda_decode", "2.22x"],
            ["cuda_sm90", "1.33x"],
            ["dense", "1.00x"],
        ]


def test_nothing_measured_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([tmp_path], "2:4", Console(width=200)) == 1
    assert "2:4: not measured on a GPU" in capsys.readouterr().out
