"""plan decides, says why, and changes nothing."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from stand_ins import AddKernel, FakeClock, quiet, two_of_four, two_of_four_model
from torch import Tensor, nn

from ajour.ops import BITMAP_LINEAR, BLOCK_LINEAR, NM_LINEAR
from ajour.planning import progress as bars
from ajour.planning.device import OtherWork
from ajour.planning.plan import Plan
from ajour.planning.planner import plan
from ajour.terms.errors import PlanError
from ajour.terms.pattern import NM, Block, Dense, Unstructured


def test_a_kernel_that_wins_is_planned(clock: FakeClock, add_kernel: AddKernel) -> None:
    add_kernel(NM_LINEAR, "quick")
    made = quiet(two_of_four_model(64, 32), torch.randn(3, 5, 64))
    (choice,) = made.choices
    assert (choice.layer, choice.shape, choice.dtype, choice.pattern) == ("0", (32, 64), "float32", NM(2, 4))
    assert (choice.op, choice.stored) == ("nm_linear", NM(2, 4))
    assert choice.density == pytest.approx(0.5)
    assert [m.rows for m in choice.measurements] == [15]
    assert choice.speedup == 2.0
    assert choice.dense_bytes == 32 * 64 * 4 > choice.sparse_bytes
    assert made.matches_device()
    assert Plan.from_json(made.to_json()) == made
    assert ("aten", 15) in clock.seen
    assert ("onednn", 15) in clock.seen


def test_a_model_without_zeros_stays_dense_without_an_error(clock: FakeClock, add_kernel: AddKernel) -> None:
    add_kernel(BITMAP_LINEAR, "quick")
    made = quiet(nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8)), torch.randn(2, 64))
    assert [choice.op for choice in made.choices] == ["dense_linear", "dense_linear"]
    assert all(choice.reason == "no zeros to use: 100.0% of the weight is non-zero" for choice in made.choices)
    clock.price = lambda name, rows: 100.0
    assert [c.op for c in quiet(nn.Linear(64, 64), torch.randn(2, 64)).choices] == [""]


def test_a_model_without_layers_has_an_empty_plan(clock: FakeClock) -> None:
    assert quiet(nn.ReLU(), torch.randn(2, 64)).choices == ()


@pytest.mark.parametrize("margin", [0.05, float("-inf")])
def test_planning_changes_nothing(clock: FakeClock, add_kernel: AddKernel, margin: float) -> None:
    add_kernel(NM_LINEAR, "quick")
    model = nn.Sequential(two_of_four(nn.Linear(64, 64)), nn.BatchNorm1d(64), nn.Dropout(0.5)).train()
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    ids = {name: id(value) for name, value in [*model.named_modules(), *model.named_parameters()]}
    pointers = [p.data_ptr() for p in model.parameters()]
    example = torch.randn(4, 64, generator=torch.Generator().manual_seed(0))
    quiet(model, example, margin=margin)
    after = model.state_dict()
    assert all(before[name].numpy().tobytes() == after[name].numpy().tobytes() for name in before)
    assert torch.equal(torch.get_rng_state(), state)
    assert {name: id(value) for name, value in [*model.named_modules(), *model.named_parameters()]} == ids
    assert [p.data_ptr() for p in model.parameters()] == pointers
    assert all(module.training for module in model.modules())


def test_the_same_model_gives_the_same_plan(clock: FakeClock, add_kernel: AddKernel) -> None:
    add_kernel(NM_LINEAR, "quick")
    model, x = two_of_four_model(64, 32, 16), torch.randn(3, 64)
    assert quiet(model, x).to_json() == quiet(model, x).to_json()


def test_each_number_of_rows_gets_its_kernel(clock: FakeClock, add_kernel: AddKernel) -> None:
    add_kernel(NM_LINEAR, "quick")
    clock.price = lambda name, rows: {"quick": 10.0 if rows <= 8 else 900.0}.get(name, 100.0)
    examples = [torch.randn(m, 64) for m in (2, 8, 100)]
    (choice,) = quiet(two_of_four_model(64, 32), examples, memory=2.0).choices
    assert [(entry.limit, entry.kernel) for entry in choice.kernels] == [(8, "quick"), (None, "aten")]
    assert choice.sparse_bytes > choice.dense_bytes
    (choice,) = quiet(two_of_four_model(64, 32), examples).choices
    assert choice.op == ""
    assert "no room for both forms" in choice.reason


def test_rows_may_be_given_instead_of_the_examples(clock: FakeClock, add_kernel: AddKernel) -> None:
    add_kernel(NM_LINEAR, "quick")
    (choice,) = quiet(two_of_four_model(64, 32), torch.randn(3, 64), rows=[64, 1]).choices
    assert [m.rows for m in choice.measurements] == [1, 64]
    (choice,) = quiet(two_of_four_model(64, 32), None, rows=[7]).choices
    assert [m.rows for m in choice.measurements] == [7]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"rows": []}, "expected rows of at least 1, found"),
        ({"rows": [0]}, r"expected rows of at least 1, found \[0\]"),
        ({"margin": -2.0}, "expected margin > -1"),
        ({"margin": float("nan")}, "expected margin > -1"),
        ({"memory": 0.0}, "a positive memory, found margin=0.05, memory=0.0"),
        ({"formats": ["3 of 4"]}, "formats: '3 of 4' is no pattern"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(PlanError, match=sentence):
        quiet(two_of_four_model(64, 32), torch.randn(3, 64), **settings)


def test_a_plan_needs_an_example_or_rows() -> None:
    with pytest.raises(PlanError, match="a plan needs an example, or the rows to plan for"):
        quiet(two_of_four_model(64, 32), None)


def test_a_failing_model_raises_its_own_error_and_keeps_no_hooks() -> None:
    model = two_of_four_model(64, 32)
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        quiet(model, torch.randn(3, 7))
    assert not model[0]._forward_pre_hooks


def test_layers_that_never_run_are_kept_with_the_reason(clock: FakeClock) -> None:
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = two_of_four(nn.Linear(64, 64)), two_of_four(nn.Linear(64, 64))

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x)  # type: ignore[no-any-return]

    made = quiet(Half(), torch.randn(2, 64))
    assert made["unused"].op == ""
    assert made["unused"].reason == "the example never calls this layer with a row"
    assert made["unused"].pattern == NM(2, 4)
    assert made["unused"].measurements == ()


def test_layers_that_cannot_be_converted_keep_their_reason(clock: FakeClock) -> None:
    model = nn.Sequential(nn.LSTM(16, 16, batch_first=True))
    made = quiet(model, torch.randn(2, 3, 16))
    assert made.choices
    assert all(choice.op == "" and "LSTM" in choice.reason for choice in made.choices)


def test_without_a_margin_even_the_reference_is_taken(clock: FakeClock) -> None:
    clock.price = lambda name, rows: {"reference": 5000.0}.get(name, 100.0)
    made = quiet(two_of_four_model(64, 32), torch.randn(3, 64), margin=float("-inf"))
    assert made.margin is None
    assert made.choices[0].kernels[0].kernel == "reference"
    assert quiet(two_of_four_model(64, 32), torch.randn(3, 64)).choices[0].op == ""


def test_formats_force_what_weights_are_stored_in(clock: FakeClock, add_kernel: AddKernel) -> None:
    for op in (NM_LINEAR, BLOCK_LINEAR, BITMAP_LINEAR):
        add_kernel(op, "quick")
    model, x = two_of_four_model(64, 32), torch.randn(3, 64)
    for pattern in (Unstructured(), NM(4, 8)):
        (choice,) = quiet(model, x, formats=[pattern], memory=2.0).choices
        assert choice.stored == pattern
    (choice,) = quiet(model, x, formats=["1:4"]).choices
    assert choice.op == "dense_linear"
    (note,) = (note for note in quiet(model, x, formats=["1:4"]).notes)
    assert "1:4 allows 1 non-zeros, found 2" in note
    (choice,) = quiet(model, x, formats=()).choices
    assert (choice.op, choice.stored) == ("dense_linear", Dense())


def test_a_pruned_weight_with_inf_and_nan_is_planned(clock: FakeClock, add_kernel: AddKernel) -> None:
    add_kernel(BITMAP_LINEAR, "quick")
    layer = nn.Linear(64, 64)
    with torch.no_grad():
        layer.weight.mul_(torch.rand(64, 64) < 0.1)
        layer.weight[3, 3], layer.weight[4, 4] = float("inf"), float("nan")
    (choice,) = quiet(layer, torch.randn(3, 64)).choices
    assert choice.op == "bitmap_linear"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes_are_planned(clock: FakeClock, add_kernel: AddKernel, dtype: torch.dtype) -> None:
    add_kernel(NM_LINEAR, "quick")
    (choice,) = quiet(two_of_four_model(64, 32).to(dtype), torch.randn(3, 64).to(dtype)).choices
    assert (choice.op, choice.dtype) == ("nm_linear", str(dtype).removeprefix("torch."))


def test_planning_under_autocast_measures_the_layers_own_dtype_and_says_so(
    clock: FakeClock, add_kernel: AddKernel
) -> None:
    add_kernel(NM_LINEAR, "quick")
    model, x = two_of_four_model(64, 32), torch.randn(3, 64)
    with torch.autocast("cpu", torch.bfloat16):
        made = quiet(model, x)
    assert (made.choices[0].op, made.choices[0].dtype) == ("nm_linear", "float32")
    (note,) = made.notes
    assert note.startswith("autocast to bfloat16 is on here, and no time is of a layer under it")
    assert note.endswith("plan for model.to(torch.bfloat16), and run that without autocast")
    assert quiet(model, x).notes == ()


def test_a_weight_of_zeros_alone_is_planned(clock: FakeClock, add_kernel: AddKernel) -> None:
    add_kernel(BLOCK_LINEAR, "quick")
    layer = nn.Linear(64, 64)
    nn.init.zeros_(layer.weight)
    (choice,) = quiet(layer, torch.randn(3, 64)).choices
    assert (choice.density, choice.op) == (0.0, "block_linear")
    assert isinstance(choice.stored, Block)


def test_a_busy_machine_is_said(clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not any("other programs" in note for note in quiet(two_of_four_model(64, 32), torch.randn(3, 64)).notes)
    monkeypatch.setattr(OtherWork, "share", lambda self: 0.4)
    notes = quiet(two_of_four_model(64, 32), torch.randn(3, 64)).notes
    assert "other programs took 40% of this machine's processor time meanwhile; measure again when it is quiet" in notes


def test_progress_is_silent_without_a_terminal(
    clock: FakeClock, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plan(two_of_four_model(64, 32), torch.randn(3, 64), progress=True)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("progress", [True, False])
def test_progress_names_what_is_measured(
    clock: FakeClock, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], progress: bool
) -> None:
    out = io.StringIO()
    real = bars.Console
    monkeypatch.setattr(bars, "Console", lambda stderr: real(file=out, force_terminal=True, width=100))
    told: list[str] = []
    update = bars.Progress.update
    monkeypatch.setattr(
        bars.Progress, "update", lambda self, *a, **k: (told.append(k.get("description", "")), update(self, *a, **k))
    )
    plan(two_of_four_model(64, 32), torch.randn(3, 64), progress=progress)
    assert "measuring 0 at 3 rows" in told
    assert bool(out.getvalue()) is progress
