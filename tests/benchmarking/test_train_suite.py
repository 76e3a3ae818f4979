"""The train suite has a row for each way to train a layer, N:M and bitmap too, and no speed for a wrong answer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from benchmarks import readme
from benchmarks.train import CELLS, Settings, run
from benchmarks.train_layer import WAYS

from ajour.ops import gradients
from ajour.terms.pattern import NM, Unstructured

CPU = torch.device("cpu")


def layer_rows(only: str) -> list[dict[str, Any]]:
    settings = Settings([torch.float32], [1], CPU, seconds=0.002, smoke=True, only=only)
    return [row for name, rows in run(settings) if name.startswith("a layer") for row in rows]


def test_every_pattern_has_a_layer_s_step_for_each_way() -> None:
    found = layer_rows("")
    assert [row["config"] for row in found] == [*WAYS] * len(CELLS)
    patterns = {row["pattern"] for row in found if row["config"] == "converted"}
    assert {str(NM(2, 4)), str(Unstructured())} < patterns
    assert all(row["error_ratio"] <= 1 and row["sparse_us"] > 0 for row in found)


def test_a_wrong_gradient_has_no_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    collect = gradients.COLLECT["nm_linear"]
    monkeypatch.setitem(gradients.COLLECT, "nm_linear", lambda dw, *about: collect(dw, *about) * 1.001)
    plain, masked, converted = layer_rows(str(NM(2, 4)))
    assert converted["speedup"] is None
    assert converted["error_ratio"] > 1
    assert plain["speedup"]
    assert masked["speedup"]


def test_the_readme_tells_layers_from_optimizers_on_one_thread() -> None:
    row = {"pattern": "2:4", "density": 0.5, "dtype": "float32", "dense_us": 2e3, "sparse_us": 1e3, "speedup": 2.0}
    row |= {"shape": "BERT-base up", "m": 512, "today_us": 4e3, "threads": 1}
    optimizer = row | {"op": "masked_adamw", "config": "values"}
    layer = row | {"op": "layer_step", "config": "converted"}
    both = readme._train([optimizer, layer, optimizer | {"threads": 2, "sparse_us": 7e3}], "now")
    told, layers = both.split("| layer |")
    assert "| masked_adamw, values alone, as a converted layer has them | 2:4, 50% | float32 | 2 | 1 | 2.00x |" in told
    assert "| BERT-base up, 512 rows: converted, trainable | 2:4, 50% | float32 | 4 | 2 | 1 | 2.00x |" in layers
    assert "| 7 |" not in both
    assert "whole step" not in readme._train([optimizer], "now")
