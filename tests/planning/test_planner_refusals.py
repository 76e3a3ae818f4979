"""A kernel that is wrong, fails or refuses is out, aloud; twins are measured once and checked each."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from stand_ins import AddKernel, FakeClock, quiet, two_of_four_model
from torch import Tensor, nn

from ajour.ops import BITMAP_LINEAR, NM_LINEAR
from ajour.planning.planner import plan
from ajour.terms.errors import ConversionError, KernelError, PlanError


def test_a_wrong_kernel_is_out_however_fast_it_is(clock: FakeClock, add_kernel: AddKernel) -> None:
    add_kernel(NM_LINEAR, "wrong", spoil=lambda y: y * 1.01)
    add_kernel(NM_LINEAR, "quick")
    clock.price = lambda name, rows: {"wrong": 1.0, "quick": 50.0}.get(name, 100.0)
    made = quiet(two_of_four_model(64, 32), torch.randn(3, 64))
    assert made.choices[0].kernels[0].kernel == "quick"
    assert any("2:4, wrong is wrong at 3 rows" in note and "is out" in note for note in made.notes)
    assert ("wrong", 3) not in clock.seen, "no time is taken of a wrong answer"


def _fails(y: Tensor) -> Tensor:
    raise KernelError("the device said no")


def test_a_failing_kernel_is_out_and_recorded(clock: FakeClock, add_kernel: AddKernel) -> None:
    add_kernel(NM_LINEAR, "broken", spoil=_fails)
    made = quiet(two_of_four_model(64, 32), torch.randn(3, 64))
    assert made.choices[0].op == "dense_linear"
    assert made.choices[0].reason == "none of 1 sparse candidates gave a right answer"
    assert "0: 2:4, broken failed at 3 rows and is out: the device said no" in made.notes


def test_a_kernel_that_the_clock_cannot_time_is_out_and_recorded(clock: FakeClock, add_kernel: AddKernel) -> None:
    def price(name: str, rows: int) -> float:
        if name == "uncapturable":
            raise RuntimeError("operation not permitted when stream is capturing")
        return {"quick": 50.0}.get(name, 100.0)

    clock.price = price
    add_kernel(NM_LINEAR, "uncapturable")
    add_kernel(NM_LINEAR, "quick")
    made = quiet(two_of_four_model(64, 32), torch.randn(3, 64))
    assert made.choices[0].kernels[0].kernel == "quick"
    assert any("uncapturable can't be timed at 3 rows and is out: operation not permitted" in n for n in made.notes)


def test_packing_that_fails_is_out_and_recorded(clock: FakeClock, add_kernel: AddKernel) -> None:
    def prepack(matrix: object, config: str) -> list[Tensor]:
        raise KernelError("no room for panels")

    add_kernel(NM_LINEAR, "broken", prepack=prepack)
    made = quiet(two_of_four_model(64, 32), torch.randn(3, 64))
    assert "0: 2:4, broken: no room for panels" in made.notes


def test_refusals_are_recorded(clock: FakeClock, add_kernel: AddKernel) -> None:
    add_kernel(NM_LINEAR, "gpu", why_not=lambda problem: f"runs on cuda, this layer is on {problem.device}")
    made = quiet(two_of_four_model(64, 32), torch.randn(3, 64))
    assert "0: 2:4, gpu: runs on cuda, this layer is on cpu" in made.untried
    assert not made.notes
    assert made.choices[0].reason == "2:4, gpu: runs on cuda, this layer is on cpu"


def test_twins_share_one_measurement_and_say_so(clock: FakeClock, add_kernel: AddKernel) -> None:
    add_kernel(NM_LINEAR, "quick")
    made = quiet(two_of_four_model(64, 64, 64, 64), torch.randn(3, 64))
    assert [choice.measured_on for choice in made.choices] == [None, "0", "0"]
    assert {choice.op for choice in made.choices} == {"nm_linear"}
    other = quiet(nn.Sequential(*two_of_four_model(64, 64), *two_of_four_model(64, 32)), torch.randn(3, 64))
    assert [choice.measured_on for choice in other.choices] == [None, None]


def test_layers_of_other_density_are_no_twins(clock: FakeClock, add_kernel: AddKernel) -> None:
    add_kernel(BITMAP_LINEAR, "quick")
    model = nn.Sequential(*(nn.Linear(64, 64) for _ in range(3)))
    with torch.no_grad():
        for layer, kept in zip(model, (0.1, 0.1, 0.3), strict=True):
            mask = torch.arange(64 * 64).view(64, 64) % round(1 / kept) == 0
            layer.weight.mul_(mask[torch.randperm(64)])
    made = quiet(model, torch.randn(3, 64))
    assert [choice.measured_on for choice in made.choices] == [None, "0", None]


def test_a_twins_own_output_is_checked(clock: FakeClock, add_kernel: AddKernel) -> None:
    calls = []

    def spoil(y: Tensor) -> Tensor:
        calls.append(y.shape)
        return y if len(calls) == 1 else y + 1

    add_kernel(NM_LINEAR, "fragile", spoil=spoil)
    made = quiet(two_of_four_model(64, 64, 64), torch.randn(3, 64))
    assert [choice.op for choice in made.choices] == ["nm_linear", "dense_linear"]
    assert any(note.startswith("1: 2:4, fragile is wrong at 3 rows") for note in made.notes)


@pytest.mark.parametrize("rows", [8, [8.0], [0], []])
def test_rows_that_are_no_whole_numbers_are_refused(rows: object) -> None:
    with pytest.raises(PlanError, match="expected rows"):
        plan(nn.Linear(8, 8), torch.randn(2, 8), rows=rows, progress=False)  # type: ignore[arg-type]


@pytest.mark.parametrize("formats", [[3], 3, [None]])
def test_formats_that_are_no_patterns_are_refused(formats: object) -> None:
    with pytest.raises(PlanError, match="formats"):
        plan(nn.Linear(8, 8), torch.randn(2, 8), formats=formats, progress=False)  # type: ignore[arg-type]


def test_a_lazy_model_is_refused_and_stays_lazy() -> None:
    model = nn.Sequential(nn.LazyLinear(8))
    with pytest.raises(PlanError, match="not initialized"):
        plan(model, torch.randn(2, 8), progress=False)
    assert isinstance(model[0], nn.LazyLinear)


@pytest.mark.parametrize(
    "settings", [{"margin": None}, {"margin": "5%"}, {"memory": "x"}, {"memory": None}, {"memory": 0}]
)
def test_settings_that_are_no_numbers_are_refused(settings: dict[str, Any]) -> None:
    ((name, value),) = settings.items()
    with pytest.raises(PlanError, match=f"expected margin > -1 .* found .*{name}={value!r}"):
        plan(nn.Linear(8, 8), torch.randn(2, 8), progress=False, **settings)


def test_what_is_no_model_is_refused() -> None:
    with pytest.raises(ConversionError, match=r"expected a torch.nn.Module, found int 5"):
        plan(5, torch.randn(2, 8), progress=False)  # type: ignore[arg-type]
