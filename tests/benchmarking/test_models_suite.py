"""Whole models: best dense against best sparse, checked in the same run."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from benchmarks import models
from benchmarks.decoder_layers import llama
from benchmarks.encoder import encoder
from benchmarks.subjects import smoke_subjects, subjects
from benchmarks.tables import line
from suites import CPU, told

from ajour.planning.device import this_device
from ajour.planning.plan import Plan
from ajour.planning.timing import Timing


def test_models_are_the_same_in_every_run() -> None:
    state = torch.get_rng_state()
    for make, shape in ((lambda: encoder(1, 32, 2, 64), (2, 5, 32)), (lambda: llama(1, 256, 64, 1, 2, 4), (2, 1, 256))):
        first, again = make(), make()
        assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
        assert first(torch.ones(shape)).shape == shape
    assert torch.equal(torch.get_rng_state(), state)


def test_a_decoder_does_not_look_ahead() -> None:
    model, x = encoder(1, 32, 2, 64, causal=True), torch.randn(1, 6, 32)
    torch.testing.assert_close(model(x)[:, :3], model(x[:, :3]))


def test_a_decoding_step_attends_to_its_own_token() -> None:
    model = llama(1, 256, 64, 1, 2, 4)
    first, second = model(torch.randn(2, 1, 256)), model.get_submodule("0").get_buffer("keys").clone()
    model(torch.randn(2, 1, 256))
    assert first.isfinite().all()
    changed = (model.get_submodule("0").get_buffer("keys") != second).any(-1).any(1)
    assert changed.tolist() == [[False, False, False, True]] * 2


def test_models_of_the_targets_are_there() -> None:
    assert {"MiniLM-L6", "encoder 12x768", "ViT-H/14 block", "GPT-2-like decoder"} == {s.name for s in subjects()}
    assert {"Llama-3-8B, 4 layers", "ViT-H/14, 4 blocks"} == {s.name for s in subjects("cuda")}
    assert [s.kept for s in subjects() if s.name == "MiniLM-L6"] == [0.5, 0.2, 0.1]


def _models(compiled: bool, monkeypatch: pytest.MonkeyPatch) -> tuple[list[tuple[str, dict[str, Any]]], list[Any]]:
    monkeypatch.setattr("ajour.planning.planner.timer_for", lambda device: told)
    plans: list[Any] = []
    settings = models.Settings(smoke_subjects(), [1], CPU, 0.01, compiled)
    return [(name, row) for name, rows in models.run(settings, plans.append) for row in rows], plans


def test_a_model_is_timed_beside_its_best_dense_and_checked(clock: None, monkeypatch: pytest.MonkeyPatch) -> None:
    found, plans = _models(False, monkeypatch)
    assert [name for name, _ in found] == ["encoder 2x64 block 16x16", "llama 1x256 2:4", "llama 1x256 block 16x16"]
    row = found[0][1]
    assert 0 < row["error_ratio"] <= 1
    assert (row["batch"], row["tokens"], row["dtype"], row["mode"]) == (1, 8, "float32", "eager")
    assert row["sparse_bytes"] < row["dense_bytes"]
    assert {choice.op for choice in plans[0].choices} == {"block_linear"}


def test_best_is_compared_with_best(monkeypatch: pytest.MonkeyPatch) -> None:
    told = {"stock": 90.0, "best dense kernels": 80.0, "compiled": 60.0, "converted": 50.0, "converted, compiled": 30.0}
    monkeypatch.setattr(models.Settings, "timer", lambda self, mode: lambda side, first, count: told[side.name])
    monkeypatch.setattr(torch, "compile", lambda model, dynamic: model)
    (_, row), *_ = _models(True, monkeypatch)[0]
    assert (row["dense_us"], row["dense_kernel"], row["sparse_us"], row["sparse_kernel"]) == (
        60.0,
        "compiled",
        30.0,
        "converted, compiled",
    )
    assert (row["speedup"], row["over_stock"], row["best_dense_kernels_us"], row["stock_us"]) == (2.0, 3.0, 80.0, 90.0)


def test_compiling_is_bounded_and_what_is_left_out_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = itertools.count(step=40)  # the clock is read before and after each
    monkeypatch.setattr(models.time, "monotonic", lambda: float(next(seconds)))
    compiling = models.Compiling({"compiled": torch.neg, "converted, compiled": torch.abs}, 100.0)
    x = torch.randn(3)
    assert list(compiling.ready(x)) == ["compiled", "converted, compiled"]
    assert (compiling.spent, compiling.notes) == (80.0, [])
    assert list(compiling.ready(x)) == ["compiled"]
    assert compiling.notes == ["converted, compiled: compiling had taken 120 s, the limit is 100"]
    assert list(compiling.ready(x)) == []
    row = {"left_out": compiling.notes[0], "batch": 1, "tokens": 8, "mode": "eager", "threads": 1, "dtype": "float32"}
    row |= {"dense_us": 3.0, "sparse_us": 2.0, "speedup": 1.5, "steady": False}
    assert line("model", row) == (
        "T=1 float32 model, 1x8 eager: 3.0 → 2.0 µs, 1.50x (times are unsteady), "
        "left out: compiled: compiling had taken 120 s, the limit is 100"
    )


def test_of_unsteady_times_only_the_certain_gain_is_a_result() -> None:
    subject, plan = smoke_subjects()[0], Plan((), this_device())
    steady, restless = Timing(50, 49, 51), Timing(100, 60, 200, least=60)
    found = {"stock": Timing(200, 199, 201), "best dense kernels": restless, "converted": steady}
    row = models._row(subject, (1, 8), "eager", found, {"converted": 0.5}, plan)
    assert (row["dense_us"], row["sparse_us"], row["speedup"], row["steady"]) == (60, 50, 1.2, False)
    row = models._row(subject, (1, 8), "eager", {**found, "converted": restless}, {"converted": 0.5}, plan)
    assert (row["dense_us"], row["sparse_us"], row["speedup"], row["over_stock"]) == (60, 200, 0.3, 1.0)
    assert row["no_difference"]
