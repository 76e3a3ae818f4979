"""compare: sides timed together, verified in the same run, and the model as it was."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch._inductor.config
from torch import nn

from ajour.comparison import Comparison, Size, compare, sides
from ajour.comparison.layer_times import Breakdown
from ajour.comparison.report import latencies
from ajour.nn import SparseLinear
from ajour.planning.timing import Timing
from factories import pruned
from hand_plan import hand_plan


def size(dense: tuple[float, float, float], sparse: tuple[float, float, float]) -> Size:
    """µs as (low, median, high) of the best dense and of the converted model; stock takes twice the dense."""
    times = {"stock": [2 * us for us in dense], "dense": dense, "converted": sparse}
    return Size("8x32", {side: Timing(m, low, high) for side, (low, m, high) in times.items()}, {})


def test_every_side_is_timed_at_every_size(compared: Comparison) -> None:
    assert [size.label for size in compared.sizes] == ["4x64", "32x64"]
    for each in compared.sizes:
        assert list(each.times) == ["stock", "dense", "converted"]
        assert all(0 < timing.low <= timing.median <= timing.high for timing in each.times.values())
    assert compared.ok
    assert compared.report.calls["nm_linear"] == 2 * len(compared.sizes)


def test_the_model_is_as_it_was() -> None:
    model = pruned().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    compare(model, {"4x64": torch.randn(4, 64)}, plan=hand_plan(model), compiled=False, seconds=0.01, progress=False)
    assert model.training
    assert not any(isinstance(module, SparseLinear) for module in model.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_where_the_time_goes_sums_up(compared: Comparison) -> None:
    for each in compared.sizes:
        assert set(each.where) == {"stock", "dense", "converted"}
        for side, found in each.where.items():
            assert set(found.layers) == {"0", "2"}
            assert all(us > 0 for us in found.layers.values())
            assert sum(each.groups(side).values()) == pytest.approx(max(found.whole, sum(found.layers.values())))


def test_repeated_layers_are_taken_together() -> None:
    where = {"stock": Breakdown({"layer.0.query": 2.0, "layer.1.query": 3.0, "pooler": 1.0}, 10.0)}
    assert Size("8x32", {}, where).groups("stock") == {"layer.*.query": 5.0, "pooler": 1.0, "everything else": 4.0}


def test_a_spread_wider_than_the_difference_is_no_difference(compared: Comparison) -> None:
    clear, noisy = size((99, 100, 101), (49, 50, 51)), size((99, 100, 101), (79, 95, 105))
    assert compared.gain(clear, "dense") == "2.00x"
    assert compared.gain(clear, "stock") == "4.00x"
    assert compared.gain(noisy, "dense") == "no difference"


@pytest.mark.parametrize(
    ("dense", "sparse", "told", "gain"),
    [
        ((60, 100, 140), (49, 50, 51), "≥1.20x", 1.2),
        ((99, 100, 101), (20, 30, 80), "≥1.25x", 1.25),
        ((45, 100, 140), (49, 50, 51), "unsteady", None),  # a gain of 2.00x by medians is not believed
        ((60, 100, 140), (110, 120, 125), "unsteady, 0.83x", None),  # a loss is not hidden
        ((60, 100, 140), (199, 200, 201), "≤0.70x", 0.7),
    ],
)
def test_of_unsteady_times_only_what_is_certain_is_a_gain_and_no_loss_is_hidden(
    compared: Comparison, dense: Any, sparse: Any, told: str, gain: float | None
) -> None:
    each = size(dense, sparse)
    assert compared.gain(each, "dense") == told
    assert each.gain("dense") == (None if gain is None else pytest.approx(gain))
    assert set(each.unsteady) <= {"stock", "dense", "converted"}
    made = json.loads(replace(compared, sizes=(each,)).to_json())["sizes"][0]
    assert made["over_fastest_dense"] == (None if gain is None else pytest.approx(gain))
    assert [made["times_us"][side]["steady"] for side in ("dense", "converted")] == [
        side not in each.unsteady for side in ("dense", "converted")
    ]
    shown = list(latencies(replace(compared, sizes=(each,))).columns[2].cells)
    assert str(shown[0]).endswith("unsteady") is ("dense" in each.unsteady)


def test_the_bar_is_the_fastest_dense() -> None:
    each = size((99, 100, 101), (49, 50, 51))
    assert each.fastest_dense == "dense"
    compiled = replace(each, times={**each.times, "compiled": Timing(80, 79, 81)})
    assert compiled.fastest_dense == "compiled"


def test_without_a_verification_no_gain_is_told(compared: Comparison) -> None:
    failed = replace(compared, report=replace(compared.report, failures=("0: its weight is not the reference's",)))
    assert not failed.ok
    assert failed.gain(size((99, 100, 101), (49, 50, 51)), "dense") == "not verified"
    text = str(failed)
    assert "NOT VERIFIED, so no gain is told: 0: its weight is not the reference's" in text
    assert all(each["over_stock"] is None for each in json.loads(failed.to_json())["sizes"])


def test_memory_is_that_of_parameters_and_buffers(compared: Comparison) -> None:
    dense = 4 * sum(parameter.numel() for parameter in pruned().parameters())
    assert compared.resident["stock"] == dense
    assert compared.resident["converted"] < 0.7 * dense
    assert compared.resident["converted"] == compared.report.bytes


def test_a_missing_compiler_is_said_and_the_rest_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", ("no-such-compiler",))
    model = nn.Sequential(nn.Linear(48, 32), nn.GELU())
    found = compare(
        model, {"4x48": torch.randn(4, 48)}, plan=hand_plan(model), compiled=True, seconds=0.01, progress=False
    )
    assert "compiled" not in found.sizes[0].times
    assert any(note.startswith("torch.compile is left out: ") for note in found.notes)
    assert "torch.compile is left out" in str(found)


def test_a_model_that_does_not_compile_is_left_out_with_the_first_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(model: nn.Module, dynamic: bool) -> object:
        def call(x: torch.Tensor) -> None:
            raise RuntimeError("\n\nno graph for this\nand a long trace")

        return call

    monkeypatch.setattr(torch, "compile", refuse)
    model = pruned()
    plan = hand_plan(model)
    models, notes = sides.make_sides(model, [torch.randn(4, 64)], plan, plan, compiled=True)
    assert notes == ("torch.compile is left out: no graph for this",)
    assert list(models) == ["stock", "dense", "converted"]


def test_compiling_that_takes_too_long_is_left_out_aloud(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = itertools.count(step=sides.COMPILING / 2)
    monkeypatch.setattr(sides.time, "monotonic", lambda: float(next(seconds)))
    monkeypatch.setattr(torch, "compile", lambda model, dynamic: model)
    model = pruned()
    plan, examples = hand_plan(model), [torch.randn(m, 64) for m in (1, 4, 8, 16)]
    models, notes = sides.make_sides(model, examples, plan, plan, compiled=True)
    assert notes == ("torch.compile is left out: after 450 s it had compiled 2 of 4 sizes",)
    assert "compiled" not in models
    seconds = itertools.count(step=0)
    assert "compiled" in sides.make_sides(model, examples, plan, plan, compiled=True)[0]


def test_json_and_text_name_every_size_and_layer(compared: Comparison) -> None:
    made = json.loads(compared.to_json())
    assert [each["size"] for each in made["sizes"]] == ["4x64", "32x64"]
    assert set(made["sizes"][0]["layers_us"]["converted"]) == {"0", "2", "everything else"}
    assert made["verification"]["ok"]
    text = str(compared)
    for said in ("4x64", "32x64", "where the time goes at", "resident: torch as it is", "verified: 2 layers"):
        assert said in text


def test_a_restless_machine_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ajour.comparison.comparing.OtherWork.share", lambda self: 0.4)
    model = pruned()
    found = compare(
        model, {"4x64": torch.randn(4, 64)}, plan=hand_plan(model), compiled=False, seconds=0.01, progress=False
    )
    assert any(note.startswith("other programs took 40% of this machine") for note in found.notes)


def test_a_fast_path_without_layers_is_said(compared: Comparison) -> None:
    layer = nn.TransformerEncoderLayer(32, 2, 64, batch_first=True)
    found = compare(
        layer, {"1x4x32": torch.randn(1, 4, 32)}, plan=hand_plan(layer), compiled=False, seconds=0.01, progress=False
    )
    assert found.ok, found.report.failures
    assert any(note.startswith("torch's fast path of TransformerEncoder has no layers") for note in found.notes)
    assert not any("fast path" in note for note in compared.notes)
