"""Two result files are compared row by row, and what is not comparable is said."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from benchmarks.against import compare, join
from rich.console import Console
from suites import run_command

from result_rows import result, row


def test_comparison_joins_rows_by_what_they_measured() -> None:
    old = [row(), row(shape="b"), row(shape="gone"), row(shape="peer", op="peer", sparse_us=None)]
    new = [row(sparse_us=40.0), row(shape="b", sparse_us=52.0), row(shape="new")]
    found = join(new, old)
    assert [(change.ratio, change.differs) for change in found.changes] == [(1.25, True), (50 / 52, False)]
    assert (len(found.missing), len(found.new)) == (1, 1)


def shown(new: dict[str, Any], old: dict[str, Any]) -> str:
    out = io.StringIO()
    Console(file=out, width=200).print(compare(new, old))
    return out.getvalue()


def test_comparison_counts_what_it_does_not_show() -> None:
    out = shown(result([row(sparse_us=40.0, dense_us=50.0), row(shape="n")]), result([row(), row(shape="b"), row(m=1)]))
    assert "1 rows in both: 1 faster, 0 slower, 0 no difference; 2 missing, 1 new" in out
    assert "dense itself: 2.00x in the median" in out
    assert "NOT THE SAME" not in out


def test_comparison_says_aloud_that_the_device_is_another() -> None:
    out = shown(result([row()], name="B", torch="2.13"), result([row()], name="A", torch="2.13"))
    assert "NOT THE SAME DEVICE OR SOFTWARE: name: B now, A before" in out


def test_two_files_are_compared_by_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, us in (("new", 25.0), ("old", 50.0)):
        (tmp_path / name).write_text(json.dumps(result([row(sparse_us=us)])))
    code, out = run_command("compare", str(tmp_path / "new"), "--against", str(tmp_path / "old"))
    assert code == 0
    assert "2.00x" in out
    (tmp_path / "old").write_text("{}")
    assert run_command("compare", str(tmp_path / "new"), "--against", str(tmp_path / "old"))[0] == 2
    assert "is no result file: expected device" in capsys.readouterr().err
