"""A plan is a record: stable as text, strict when read, and refused by name where it does not belong."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import ajour
from ajour.planning.device import Device, this_device
from ajour.planning.plan import Choice, Measurement, Plan, RowChoice
from ajour.terms.errors import PlanError
from ajour.terms.pattern import NM, Block, Dense, Pattern, Unstructured

CPU = Device("cpu", "A CPU", "AVX512", "2.13.0", 2)
SPARSE = Choice(
    "encoder.0.fc1",
    (3072, 768),
    "float32",
    NM(2, 4),
    0.5,
    "nm_linear",
    NM(2, 4),
    (RowChoice(64, "cpu", "wide"), RowChoice(None, "onednn")),
    (
        Measurement(64, 100.0, "onednn", 210.0, 40.0, "cpu", 0.02),
        Measurement(512, 900.0, "onednn", 2000.0, 1100.0, "cpu", 0.1),
    ),
    9437184,
    14155776,
    "2.50x over the best dense",
)
KEPT = Choice("lstm.weight_ih_l0", (64, 16), "float32", reason="an LSTM")
PLAN = Plan((SPARSE, KEPT), CPU, 0.05, 1.6, ("a note",))

patterns = st.one_of(
    st.just(Dense()),
    st.just(Unstructured()),
    st.builds(lambda group, part: NM(max(1, min(group - 1, part)), group), st.integers(2, 32), st.integers(1, 31)),
    st.builds(Block, st.integers(2, 256), st.integers(1, 256)),
)
times = st.floats(0, 1e9, allow_nan=False)
measurements = st.builds(
    Measurement, st.integers(1, 2**40), times, st.text(), times, st.none() | times, st.none() | st.text(), times
)


@st.composite
def choices(draw: st.DrawFn) -> Choice:
    limits = sorted(draw(st.sets(st.integers(1, 2**40), max_size=3)))
    op = draw(st.sampled_from(["", "nm_linear", "dense_linear"]))
    kernels = tuple(RowChoice(limit, draw(st.text()), draw(st.text())) for limit in [*limits, None])
    stored: Pattern = draw(patterns)
    return Choice(
        draw(st.text()),
        draw(st.tuples(st.integers(0, 2**20), st.integers(0, 2**20))),
        "bfloat16",
        draw(st.none() | patterns),
        draw(st.none() | st.floats(0, 1)),
        op,
        stored if op else None,
        kernels if op else (),
        tuple(draw(st.lists(measurements, max_size=3))),
        draw(st.integers(0, 2**60)),
        draw(st.integers(0, 2**60)),
        draw(st.text()),
        draw(st.none() | st.text()),
    )


@given(st.lists(choices(), max_size=3, unique_by=lambda choice: choice.layer), st.none() | times, times)
def test_json_gives_the_same_plan_back(made: list[Choice], margin: float | None, memory: float) -> None:
    plan = Plan(tuple(made), CPU, margin, memory, ("ä note",))
    again = Plan.from_json(plan.to_json())
    assert again == plan
    assert again.to_json() == plan.to_json()


def _edited(*path: str | int, value: Any) -> str:
    data = json.loads(PLAN.to_json())
    place = data
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    return json.dumps(data)


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    [
        (("kind",), "another", "this is no plan"),
        (("version",), 4, "this plan is of version 4, this ajour reads up to 3; update ajour or plan again"),
        (("version",), "1", "version: expected 1 to 3, found '1'"),
        (("version",), 0, "version: expected 1 to 3, found 0"),
        (("choices", 0, "measurements", 0, "steady"), 1, r"measurements\[0\].steady: expected true or false, found 1"),
        (("version",), True, "version: expected 1 to 3, found True"),
        (("extra",), 1, "plan: extra is unknown"),
        (("choices",), {}, r"plan.choices: expected a list"),
        (("choices", 0, "shape"), "3072x768", r"plan.choices\[0\].shape: expected a list"),
        (("choices", 0, "shape"), [3072, True], r"plan.choices\[0\].shape\[1\]: expected a whole number"),
        (("choices", 0, "shape"), [3072, -768], r"plan.choices\[0\].shape\[1\]: expected a whole number"),
        (("choices", 0, "pattern"), "3 of 4", r"plan.choices\[0\].pattern: '3 of 4' is no pattern"),
        (
            ("choices", 0, "pattern"),
            7,
            r"plan.choices\[0\].pattern: expected a pattern or its name, like '2:4' .*, found 7",
        ),
        (("choices", 0, "density"), "half", r"plan.choices\[0\].density: expected a number"),
        (("choices", 0, "op"), "", "encoder.0.fc1: an op, the pattern it is stored in and its kernels come together"),
        (("choices", 0, "op"), None, r"plan.choices\[0\].op: expected text"),
        (("choices", 0, "stored"), None, "encoder.0.fc1: an op, the pattern it is stored in"),
        (("choices", 0, "kernels", 0, "limit"), None, "limits of rows must rise"),
        (("choices", 0, "kernels", 0, "limit"), 0, "limits of rows must rise"),
        (("choices", 0, "kernels", 1, "limit"), 65, "limits of rows must rise and end without one"),
        (("choices", 0, "measurements", 0, "rows"), 1.5, r"measurements\[0\].rows: expected a whole number"),
        (("choices", 1, "layer"), "encoder.0.fc1", "a plan holds each layer once"),
        (("device",), None, "plan.device: expected an object"),
        (("memory",), 10**400, "plan.memory"),
    ],
)
def test_a_malformed_plan_is_refused_with_its_place(path: tuple[str | int, ...], value: Any, sentence: str) -> None:
    with pytest.raises(PlanError, match=sentence):
        Plan.from_json(_edited(*path, value=value))


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '"plan"', "NaN", '{"kind": "ajour plan", "version": NaN}', "[" * 100_000]
)
def test_what_is_no_plan_is_refused(text: str) -> None:
    with pytest.raises(PlanError, match="this is no plan"):
        Plan.from_json(text)


@pytest.mark.parametrize("cut", range(1, 400, 23))
def test_a_truncated_plan_is_refused(cut: int) -> None:
    with pytest.raises(PlanError):
        Plan.from_json(PLAN.to_json().rstrip()[:-cut])


def test_a_plan_of_an_older_version_is_read_without_what_came_later() -> None:
    data = json.loads(PLAN.to_json())
    data["version"] = 1
    del data["untried"], data["trainable"]
    for choice in data["choices"]:
        for measurement in choice["measurements"]:
            del measurement["steady"]
    assert Plan.from_json(json.dumps(data)) == replace(PLAN, untried=())
    data["version"] = 2
    with pytest.raises(PlanError, match="untried is missing"):
        Plan.from_json(json.dumps(data))
    data["version"] = 1
    del data["margin"]
    with pytest.raises(PlanError, match="plan: margin is missing"):
        Plan.from_json(json.dumps(data))


def test_a_missing_field_is_named() -> None:
    data = json.loads(PLAN.to_json())
    del data["choices"][0]["dtype"]
    with pytest.raises(PlanError, match=r"plan.choices\[0\]: dtype is missing"):
        Plan.from_json(json.dumps(data))


def test_times_are_those_of_what_was_chosen() -> None:
    assert [SPARSE.chosen_us(m) for m in SPARSE.measurements] == [40.0, 900.0]
    assert SPARSE.dense_us == 1000.0
    assert SPARSE.sparse_us == 940.0
    assert SPARSE.today_us == 2210.0
    assert SPARSE.speedup == pytest.approx(1000 / 940)
    as_it_is = replace(SPARSE, op="", stored=None, kernels=())
    assert as_it_is.sparse_us == as_it_is.today_us, "a kept layer runs as it does today, not on the best dense"
    assert KEPT.speedup is KEPT.dense_us is None


def test_the_entry_of_a_row_count_is_the_first_that_reaches_it() -> None:
    assert [entry.kernel for m in (1, 64, 65, 10**9) if (entry := SPARSE.at(m))] == ["cpu", "cpu", "onednn", "onednn"]
    assert KEPT.at(5) is None


def test_a_choice_is_found_by_name() -> None:
    assert PLAN["encoder.0.fc1"] is SPARSE
    with pytest.raises(PlanError, match=r"no layer 'fc2'; it has encoder.0.fc1, lstm"):
        PLAN["fc2"]


def test_a_plan_belongs_to_its_kind_of_device() -> None:
    here = this_device("cpu")
    assert Plan((), here).matches_device()
    assert Plan((), replace(here, threads=here.threads + 7)).matches_device("cpu"), "threads are written, not compared"
    assert not Plan((), replace(here, name="Another CPU")).matches_device()
    reason = Plan((), replace(here, name="Another CPU")).why_not_device()
    assert reason is not None
    assert "Another CPU" in reason
    assert "plan again with an example" in reason
    assert not Plan((), replace(here, level="AVX2")).matches_device()
    assert not Plan((), replace(here, torch="1.0.0")).matches_device()
    patch = ".".join([*here.torch.split(".")[:2], "99"])
    assert Plan((), replace(here, torch=patch)).matches_device()


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a CUDA device")
def test_a_gpu_plan_is_refused_on_a_machine_without_one() -> None:
    reason = Plan((), Device("cuda", "NVIDIA H100", "sm_90", "2.13.0", 8)).why_not_device()
    assert reason is not None
    assert "NVIDIA H100" in reason
    assert "no CUDA device" in reason


@dataclass
class _Layer:
    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32


@pytest.mark.parametrize(
    ("layers", "sentence"),
    [
        ([_Layer("lstm.weight_ih_l0", (64, 16))], "encoder.0.fc1: the plan knows this layer"),
        (
            [_Layer("encoder.0.fc1", (768, 3072)), _Layer("lstm.weight_ih_l0", (64, 16))],
            "3072x768 float32, the model has 768x3072",
        ),
        (
            [_Layer("encoder.0.fc1", (3072, 768), torch.bfloat16), _Layer("lstm.weight_ih_l0", (64, 16))],
            "the model has 3072x768 bfloat16",
        ),
        (
            [_Layer("encoder.0.fc1", (3072, 768)), _Layer("lstm.weight_ih_l0", (64, 16)), _Layer("new", (1, 1))],
            "new: the model has this layer, the plan does not know it",
        ),
    ],
)
def test_a_plan_for_another_model_is_refused_by_its_first_difference(layers: list[_Layer], sentence: str) -> None:
    reason = PLAN.why_not_model(layers)
    assert reason is not None
    assert sentence in reason


def test_a_plan_fits_the_model_it_was_made_for() -> None:
    layers = [_Layer("encoder.0.fc1", (3072, 768)), _Layer("lstm.weight_ih_l0", (64, 16))]
    assert PLAN.why_not_model(layers) is None


@pytest.mark.parametrize("margin", [-0.5, 0.0, 0.05, None])
def test_every_margin_comes_back(margin: float | None) -> None:
    plan = Plan((), this_device(), margin=margin)
    assert Plan.from_json(plan.to_json()) == plan
    with pytest.raises(PlanError, match="memory"):
        Plan.from_json(Plan((), this_device(), memory=-0.5).to_json())


def test_what_is_no_text_is_no_plan() -> None:
    with pytest.raises(PlanError, match=r"this is no plan: .*not int"):
        Plan.from_json(5)  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["plan.json", Path("plan.json"), PLAN.to_json()], ids=["name", "path", "text"])
def test_a_plans_path_or_text_is_refused_with_what_to_do(text: Any) -> None:
    model = torch.nn.Linear(8, 8)
    with pytest.raises(PlanError, match=r"expected a Plan or an example .* ajour\.Plan\.from_json"):
        ajour.convert(model, text)
    assert type(model) is torch.nn.Linear
