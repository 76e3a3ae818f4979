"""Layers in e4m3 are timed beside torch's own products in e4m3, and checked on the rounded numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from benchmarks import ops, scaled
from benchmarks.cases import Case, cases
from suites import settings

from ajour.terms.pattern import NM

CASE = Case(NM(2, 4), 0.5, "random", (5, 70), "e4m3")


def _rows(dtype: torch.dtype = torch.bfloat16) -> list[dict[str, Any]]:
    return [row for _, rows in ops.run(settings(cases=[CASE], rows=None, dtypes=[dtype])) for row in rows]


def test_each_kernel_has_a_row_in_each_cell(clock: None) -> None:
    found = _rows()
    assert {(row["kernel"], row["m"]) for row in found} == {("cpu", 5), ("cpu", 70), ("cpu_unpack", 70)}
    for row in found:
        assert (row["op"], row["pattern"], row["dtype"]) == ("scaled_nm_linear", "2:4", "bfloat16")
        assert 0 < row["error_ratio"] <= 1
        assert row["dense_us"] is not None
    n, k = found[0]["n"], found[0]["k"]
    assert found[0]["bytes"] == n * k // 2 + n * k // 8 + 2 * n + 5 * (n + k) * 2


def test_the_dense_bar_is_a_product_in_e4m3_of_all_weights() -> None:
    x, w = torch.randn(16, 64).bfloat16(), torch.randn(32, 64).bfloat16()
    (side,) = scaled._dense(x, w, lambda nbytes: 2) or pytest.skip("this torch has no _scaled_mm on a CPU")
    expected = scaled.rounded(x).double() @ scaled.rounded(w).double().T
    assert len(side.calls) == 2
    for call in side.calls:
        assert float((call().double() - expected).abs().max()) <= 2**-7 * float(expected.abs().max())


def test_a_wrong_answer_has_no_gain(clock: None, monkeypatch: pytest.MonkeyPatch) -> None:
    real = scaled.rounded
    monkeypatch.setattr(scaled, "rounded", lambda x: real(x) * 1.1)  # what it is checked against
    assert all(row["speedup"] is None for row in _rows())


def test_layers_in_float32_have_no_such_cells(clock: None) -> None:
    assert not _rows(torch.float32)
    assert [case.values for case in cases("cuda") if case.values] == ["e4m3"]
    assert not [case for case in cases("cpu") if case.values]
