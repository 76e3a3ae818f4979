"""A plan for training times y, dx and dw together, and names the configuration that each was fastest with."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from stand_ins import AddKernel, FakeClock, quiet, two_of_four_model
from torch import Tensor, nn

import ajour
from ajour.nn import BlockLinear
from ajour.ops import BLOCK_LINEAR, BLOCK_SDDMM, NM_LINEAR
from ajour.planning.plan import Plan, RowChoice
from ajour.terms.kernel import SampledKernel, config_of
from ajour.terms.pattern import Block
from ajour.terms.problem import Problem
from ajour.terms.row_table import RowEntry

FAST = ("fb", "xa", "wb")


def blocks_model(*sizes: tuple[int, int]) -> nn.Sequential:
    """Layers (k, n) with a third of their 32x32 blocks."""
    model = nn.Sequential(*(nn.Linear(k, n) for k, n in sizes))
    return ajour.prune(model, Block(32, 32), density=0.34)


def price(name: str, rows: int) -> float:
    """Of dense steps, of "quick" for all three products, and of "quick" with a configuration for one of them."""
    kernel, _, config = name.partition(" ")
    return {"aten": 300.0, "onednn": 200.0}.get(kernel, 5.0 if config in FAST else 8.0 if config else 100.0)


@pytest.fixture
def quick(add_kernel: AddKernel, monkeypatch: pytest.MonkeyPatch, clock: FakeClock) -> dict[str, Any]:
    """A kernel with two configurations for each product, whose answers `spoiled` ones get wrong: {"spoiled": {...}}."""
    told: dict[str, Any] = {"spoiled": set(), "ran": []}
    reference, sampled = BLOCK_LINEAR.kernels["reference"], BLOCK_SDDMM.kernels["reference"]
    assert reference.run_t is not None

    def is_spoiled(product: str, entry: RowEntry) -> bool:
        config = config_of(entry.config, product) if product != "dw" else entry.config
        told["ran"].append(config)
        return config in told["spoiled"]

    def configs(problem: Problem) -> tuple[str, ...]:
        return ("fa", "fb") if problem.n > problem.k else ("xa", "xb")

    def run_t(dy: Tensor, packed: Any, entry: RowEntry) -> Tensor:
        assert reference.run_t is not None
        return reference.run_t(dy, packed, entry) + is_spoiled("dx", entry)

    def run_dw(gradient: Tensor, *args: Any) -> None:
        sampled.run(gradient, *args)
        gradient += is_spoiled("dw", args[-1])

    def run(*args: Any) -> Tensor:
        y: Tensor = reference.run(*args) + is_spoiled("forward", args[-1])
        return y

    add_kernel(BLOCK_LINEAR, "quick")
    made = replace(BLOCK_LINEAR.kernels["quick"], run=run, run_t=run_t, configs=configs, check=lambda p, c: None)
    BLOCK_LINEAR.kernels["quick"] = made
    dw = SampledKernel("quick", lambda p: None, run_dw, lambda p: ("wa", "wb"), lambda p, c: None)
    monkeypatch.setitem(BLOCK_SDDMM.kernels, "quick", dw)
    clock.price = price
    return told


def test_the_fastest_configuration_of_each_product_is_planned_and_run(quick: dict[str, Any], clock: FakeClock) -> None:
    model = blocks_model((64, 128))
    made = quiet(model, torch.randn(5, 64), trainable=True)
    (choice,) = made.choices
    assert choice.kernels == (RowChoice(None, "quick", "fb / xa / wb"),)
    assert choice.speedup == 2.0
    assert {"quick fa", "quick fb", "quick xa", "quick xb", "quick wa", "quick wb"} <= {name for name, _ in clock.seen}
    assert Plan.from_json(made.to_json()) == made
    assert "µs of y, dx and dw together" in str(made)
    assert "fb / xa" in str(made)

    layer = ajour.convert(model, made, trainable=True)[0]
    assert isinstance(layer, BlockLinear)
    assert layer.kernels.endswith("| * quick 0:6 fb / xa / wb")
    quick["ran"].clear()
    layer(torch.randn(3, 64, requires_grad=True)).sum().backward()
    assert quick["ran"] == ["fb", "xa", "wb"]


def test_each_number_of_rows_has_its_configurations(quick: dict[str, Any], clock: FakeClock) -> None:
    few = {"quick fa": 5.0, "quick xa": 5.0, "quick wb": 5.0}
    clock.price = lambda name, rows: few.get(name, 8.0) if rows < 9 else price(name, rows)
    model = blocks_model((64, 128))
    made = quiet(model, None, rows=(4, 64), trainable=True, margin=float("-inf"))
    assert made["0"].kernels == (RowChoice(4, "quick", "fa / xa / wb"), RowChoice(None, "quick", "fb / xa / wb"))
    layer = ajour.convert(model, made, trainable=True)[0]
    for m, expected in ((4, ["fa", "xa", "wb"]), (5, ["fb", "xa", "wb"])):
        quick["ran"].clear()
        layer(torch.randn(m, 64, requires_grad=True)).sum().backward()
        assert quick["ran"] == expected


@pytest.mark.parametrize(("spoiled", "left"), [("fb", "fa / xa / wb"), ("xa", "fb / xb / wb"), ("wb", "fb / xa / wa")])
def test_a_configuration_with_a_wrong_product_is_out(quick: dict[str, Any], spoiled: str, left: str) -> None:
    quick["spoiled"] = {spoiled}
    made = quiet(blocks_model((64, 128)), torch.randn(5, 64), trainable=True)
    assert [entry.config for entry in made.choices[0].kernels] == [left]
    assert any(f"{spoiled}" in note and "is wrong at 5 rows" in note for note in made.notes)


def test_a_product_without_a_right_configuration_leaves_the_layer_dense(quick: dict[str, Any]) -> None:
    quick["spoiled"] = {"wa", "wb", ""}
    made = quiet(blocks_model((64, 128)), torch.randn(5, 64), trainable=True)
    assert made.choices[0].op == ""
    assert any(", dw, is wrong at 5 rows" in note for note in made.notes)


def test_a_layer_stays_as_it_is_where_a_dense_step_is_faster(quick: dict[str, Any], clock: FakeClock) -> None:
    clock.price = lambda name, rows: {"aten": 90.0, "onednn": 50.0}.get(name, 100.0)
    for memory in (1.0, 3.0):
        (choice,) = quiet(blocks_model((64, 128)), torch.randn(5, 64), trainable=True, memory=memory).choices
        assert (choice.op, choice.stored, choice.kernels) == ("", None, ())
        assert choice.reason == "quick is slower at 5 rows: 0.50x of dense (onednn), the margin is 1.05x"


def test_a_twin_takes_the_configurations_once_they_gave_right_answers(quick: dict[str, Any]) -> None:
    model = blocks_model((64, 128), (64, 128))
    made = quiet(model, None, rows=[5], trainable=True)
    assert made["1"].measured_on == "0"
    assert made["1"].kernels == made["0"].kernels == (RowChoice(None, "quick", "fb / xa / wb"),)


def test_what_only_the_reference_trains_stays_dense(clock: FakeClock) -> None:
    (choice,) = quiet(two_of_four_model(64, 32), torch.randn(5, 64), trainable=True).choices
    assert choice.op == ""
    said = "no kernel here trains 2:4 faster than dense (the reference holds its zeros, but saves no time)"
    assert choice.reason == said
    (choice,) = quiet(two_of_four_model(64, 32), torch.randn(5, 64), trainable=True, margin=float("-inf")).choices
    assert choice.kernels == (RowChoice(None, "reference"),)


def test_kernels_of_other_devices_are_no_reason_on_the_page(clock: FakeClock, add_kernel: AddKernel) -> None:
    add_kernel(NM_LINEAR, "gpu", packing="canonical", why_not=lambda problem: "runs on CUDA")
    made = quiet(two_of_four_model(64, 32), torch.randn(5, 64), trainable=True)
    assert made.choices[0].reason.startswith("no kernel here trains 2:4 faster than dense")
    assert "0: 2:4, gpu: runs on CUDA" in made.untried


def test_a_kernel_that_cannot_compute_dw_is_not_tried(quick: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    refusing = replace(BLOCK_SDDMM.kernels["quick"], why_not=lambda problem: "its blocks are too large")
    monkeypatch.setitem(BLOCK_SDDMM.kernels, "quick", refusing)
    made = quiet(blocks_model((64, 128)), torch.randn(5, 64), trainable=True)
    assert made.choices[0].op == ""
    assert "0: block 32x32, quick: its blocks are too large" in made.untried
    layer = BlockLinear(ajour.formats.BlockMatrix.from_dense(torch.ones(64, 64), Block(32, 32)), trainable=True)
    assert "reference" in layer.kernels
