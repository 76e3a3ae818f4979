"""limits: what zeros could gain at best, from bytes and flops, before anyone prunes."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

import ajour
from ajour.planning.timing import cpu_timer
from ajour.roofline import SizeLimits, limiting
from ajour.roofline.facts import DEVICES, DeviceFacts, named
from ajour.roofline.formula import Limits
from ajour.roofline.measured import measured
from ajour.terms.errors import PlanError

CPU = DeviceFacts("a CPU", 40e3, {"float32": 250e3, "bfloat16": 500e3}, None, "made up", 2.0)


@pytest.fixture(autouse=True)
def facts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is measured: this device is CPU."""
    monkeypatch.setattr(limiting, "facts_of", lambda device, dtypes: CPU)


def big(dtype: torch.dtype = torch.bfloat16) -> nn.Module:
    """A model too big for a test, without its values."""
    with torch.device("meta"):
        return nn.Sequential(nn.Linear(4096, 11008, bias=False), nn.Linear(11008, 4096, bias=False)).to(dtype)


def on(device: str, rows: int) -> dict[str, float | None]:
    model = big()
    x = torch.empty(rows, 4096, device="meta", dtype=torch.bfloat16)
    return dict(ajour.limits(model, x, device).sizes[0].gains)


def test_the_formula_is_the_larger_of_bytes_and_arithmetic_after_an_empty_call() -> None:
    at = Limits(bandwidth=10.0, rate=100.0, empty=3.0)
    assert at.us(200.0, 100.0) == 3 + 20
    assert at.us(200.0, 4000.0) == 3 + 40
    assert (at.bound(200.0, 100.0), at.bound(200.0, 4000.0)) == ("bytes", "arithmetic")


@pytest.mark.parametrize("device", ["H100 SXM", "H200", "RTX 4090"])
def test_few_rows_gain_what_the_bytes_say(device: str) -> None:
    gains = on(device, 1)
    expected = {"2:4": 16 / 9, "1:4": 16 / 4.5, "unstructured 50 %": 16 / 9, "unstructured 80 %": 16 / 4.2}
    expected |= {"block 64x64 80 %": 5.0, "fp8 dense": 2.0, "int4 dense": 16 / 4.125}
    assert {name: gains[name] for name in expected} == pytest.approx(expected, rel=0.01)


def test_many_rows_gain_what_the_arithmetic_says() -> None:
    gains = on("H100 SXM", 2048)
    assert gains["2:4"] == pytest.approx(2.0, rel=0.01)
    assert gains["1:4"] == pytest.approx(2.0, rel=0.01)
    assert gains["unstructured 90 %"] == gains["int4 dense"] == 1.0
    assert gains["block 64x64 80 %"] == pytest.approx(5.0, rel=0.01)
    assert gains["block 32x32 80 %"] == pytest.approx(5.0 * 2 / 3, rel=0.01)
    assert on("A100 SXM", 2048)["block 32x32 80 %"] == pytest.approx(5.0, rel=0.01)


def test_sparse_tensor_cores_take_no_float32() -> None:
    x = torch.empty(4096, 4096, device="meta")
    gains = ajour.limits(big(torch.float32), x, "H100 SXM").sizes[0].gains
    assert gains["2:4"] == 1.0


def test_a_device_without_fp8_has_no_fp8_gain() -> None:
    assert on("A100 SXM", 8)["fp8 dense"] is None
    report = ajour.limits(nn.Linear(64, 64), torch.randn(8, 64))
    assert report.sizes[0].gains["fp8 dense"] is None
    assert "fp8" not in report.sizes[0].sentence()


def test_a_cpu_multiplies_only_what_is_kept() -> None:
    gains = ajour.limits(nn.Linear(4096, 4096, bias=False), torch.randn(4096, 4096)).sizes[0].gains
    assert gains["unstructured 80 %"] == pytest.approx(5.0, rel=0.02)
    assert gains["2:4"] == pytest.approx(2.0, rel=0.02)


def test_rows_are_those_that_the_example_brings_to_each_layer() -> None:
    model = nn.Sequential(nn.Linear(32, 64), nn.Flatten(0, 1), nn.Linear(64, 32))
    report = ajour.limits(model, [torch.randn(2, 8, 32), torch.randn(1, 4, 32)])
    assert [[layer.rows for layer in size.layers] for size in report.sizes] == [[16, 16], [4, 4]]
    assert [size.rows for size in report.sizes] == [16, 4]
    report = ajour.limits(model, None, rows=[3, 5])
    assert [size.rows for size in report.sizes] == [3, 5]


def test_the_whole_is_the_sum_of_its_layers() -> None:
    report = ajour.limits(nn.Sequential(nn.Linear(512, 64), nn.Linear(64, 512)), torch.randn(4, 512))
    size = report.sizes[0]
    assert size.dense_us == pytest.approx(sum(layer.dense_us for layer in size.layers))
    sparse = sum(layer.dense_us / (layer.gains["2:4"] or 0) for layer in size.layers)
    assert size.gains["2:4"] == pytest.approx(size.dense_us / sparse)


def test_the_sentence_names_what_helps_and_what_does_not() -> None:
    model = big()
    xs = [torch.empty(rows, 4096, device="meta", dtype=torch.bfloat16) for rows in (8, 2048)]
    few, many = (size.sentence() for size in ajour.limits(model, xs, "h100 sxm").sizes)
    assert few.startswith("At 8 rows, at most: 2:4 1.77x, unstructured 80 % 3.78x")
    assert "No gain from" not in few
    assert "No gain from unstructured 80 %, int4 dense." in many


@pytest.mark.parametrize(
    ("gains", "said"),
    [
        (
            {"2:4": 1.0, "block 64x64 80 %": 3.9, "fp8 dense": None, "int4 dense": 1.01},
            "At 2048 rows only block 64x64 80 % 3.90x helps, at most; no gain from 2:4, int4 dense.",
        ),
        (
            {"2:4": 1.04, "int4 dense": 0.9},
            "At 2048 rows nothing helps: the best of 2:4, int4 dense brings under 1.05x.",
        ),
        ({"2:4": 1.5}, "At 2048 rows, at most: 2:4 1.50x."),
    ],
)
def test_what_alone_helps_is_said_so(gains: dict[str, float | None], said: str) -> None:
    assert SizeLimits(2048, 100.0, gains, ()).sentence() == said


def test_the_page_says_aloud_what_runs_at_which_rate_and_whose_figures_they_are() -> None:
    model = big()
    x = torch.empty(8, 4096, device="meta", dtype=torch.bfloat16)
    text = " ".join(str(ajour.limits(model, x, "H100 PCIe")).split())
    for said in ("sparse tensor cores alone", "save bytes, never multiplications", "datasheet", "Limits, not promises"):
        assert said in text
    assert "A CPU multiplies only what is kept" in str(ajour.limits(nn.Linear(64, 64), torch.randn(8, 64)))


def test_json_holds_every_layer_and_the_sentences() -> None:
    made = json.loads(ajour.limits(nn.Sequential(nn.Linear(64, 32)), torch.randn(8, 64)).to_json())
    assert made["sizes"][0]["layers"][0]["layer"] == "0"
    assert made["sizes"][0]["sentence"].startswith("At 8 rows")


def test_layers_of_one_kind_are_shown_together() -> None:
    model = nn.Sequential(*(nn.Linear(64, 64) for _ in range(3)), nn.Linear(64, 32))
    text = str(ajour.limits(model, [torch.randn(8, 64), torch.randn(16, 64)]))
    assert "* (3x)" in text
    assert text.count("64x64 float32") == text.count("32x64 float32") == 1


def test_layers_that_can_not_be_converted_are_named() -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.Conv2d(32, 32, 3))
    text = str(ajour.limits(model, None, rows=[8]))
    assert "not counted: 1: Conv2d is a convolution" in text


def test_names_of_devices_are_read_as_people_write_them() -> None:
    assert named("nvidia geforce rtx-4090").name == "RTX 4090"
    assert len({facts.name for facts in DEVICES}) == len(DEVICES) >= 6
    assert all(facts.source for facts in DEVICES)


def test_refusals() -> None:
    with pytest.raises(
        PlanError, match="no facts are known of a device 'abacus'; expected cpu, cuda, or one of H100 SXM"
    ):
        ajour.limits(nn.Linear(64, 64), torch.randn(8, 64), "abacus")
    with pytest.raises(PlanError, match="limits need an example, or the numbers of rows"):
        ajour.limits(nn.Linear(64, 64), None)
    with pytest.raises(PlanError, match="no linear layer that could be converted"):
        ajour.limits(nn.Conv2d(32, 32, 3), None, rows=[8])
    with pytest.raises(PlanError, match="on the meta device; name one"):
        ajour.limits(big(), None, rows=[8])
    with pytest.raises(PlanError, match="no rate is known of float64"):
        ajour.limits(nn.Linear(64, 64).double(), None, "H200", rows=[8])


def test_this_device_can_be_measured() -> None:
    found = measured(torch.float32, torch.device("cpu"), cpu_timer, smoke=True)
    assert min(found.bandwidth, found.rate, found.empty) > 0


def test_a_device_that_is_neither_one_nor_a_name_is_refused() -> None:
    with pytest.raises(PlanError, match="expected a device or its name, like 'cpu' or 'H100 SXM', found 5"):
        ajour.limits(nn.Linear(64, 64), None, 5, rows=[1])  # type: ignore[arg-type]
