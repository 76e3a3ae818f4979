"""load: bit for bit, into dense, converted and meta skeletons, by the plan that holds here."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from files import rewritten
from small import IDS, Small, assert_same_state, converted, pruned, skeletons, state
from torch import nn

from ajour.conversion import convert, revert
from ajour.conversion.recorded import plan_of
from ajour.io import load, save
from ajour.nn import SparseLinear
from ajour.ops.calls import count_calls
from ajour.planning.plan import Plan
from ajour.pruning import prune
from ajour.terms.errors import FileError, PlanError
from ajour.terms.pattern import NM, Unstructured
from hand_plan import hand_plan


@pytest.mark.parametrize("kind", ["dense", "meta", "converted"])
def test_a_loaded_model_is_the_saved_one_bit_for_bit(tmp_path: Path, kind: str) -> None:
    model, skeleton = converted(), skeletons()[kind]()
    save(model, tmp_path / "m.safetensors")
    loaded = load(tmp_path / "m.safetensors", skeleton)
    assert loaded is skeleton
    with count_calls() as calls:
        y = loaded(IDS)
    assert dict(calls.ops) == {"nm_linear": 1, "block_linear": 1, "bitmap_linear": 1}
    assert torch.equal(y, model(IDS))
    assert_same_state(loaded, state(model))
    assert loaded.head.weight is loaded.embed.weight
    assert torch.equal(loaded.shift, model.shift)
    assert not any(tensor.is_meta for tensor in (*loaded.parameters(), *loaded.buffers()))
    assert plan_of(loaded) == plan_of(model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("trainable", [False, True])
def test_dtypes_and_training_survive(tmp_path: Path, dtype: torch.dtype, trainable: bool) -> None:
    model = converted(dtype, trainable)
    save(model, tmp_path / "m.safetensors")
    loaded = load(tmp_path / "m.safetensors", Small(dtype).eval())
    assert_same_state(loaded, state(model))
    up = loaded.get_submodule("up")
    assert isinstance(up, SparseLinear)
    assert (up.trainable, up.dtype, up.activation) == (trainable, dtype, model.up.activation)
    assert [p.requires_grad for p in loaded.parameters()] == [p.requires_grad for p in model.parameters()]


@pytest.mark.parametrize("kind", ["dense", "meta"])
def test_reverting_a_loaded_model_gives_the_masked_dense_one(tmp_path: Path, kind: str) -> None:
    dense = pruned()
    before = state(dense)
    save(convert(dense, hand_plan(dense)), tmp_path / "m.safetensors")
    loaded = revert(load(tmp_path / "m.safetensors", skeletons()[kind]()))
    assert_same_state(loaded, before)
    assert type(loaded.act) is nn.GELU


def test_a_skeleton_s_parameters_stay_the_same_objects(tmp_path: Path) -> None:
    save(converted(), tmp_path / "m.safetensors")
    skeleton = Small()
    embed, bias = skeleton.embed.weight, skeleton.norm.bias
    load(tmp_path / "m.safetensors", skeleton)
    assert skeleton.embed.weight is embed
    assert skeleton.norm.bias is bias


def elsewhere(model: nn.Module) -> Plan:
    plan = plan_of(model)
    assert plan is not None
    return replace(plan, device=replace(plan.device, name="Another CPU"))


def test_a_plan_of_another_device_is_refused_unless_one_is_given(tmp_path: Path) -> None:
    model, path = pruned(), tmp_path / "m.safetensors"
    convert(model, hand_plan(model))
    here = plan_of(model)
    save(model, path)
    rewritten(path, lambda tensors, metadata: metadata.update(plan=elsewhere(model).to_json()))
    skeleton = Small()
    before = state(skeleton)
    with pytest.raises(PlanError, match=r"measured on Another CPU.*give load a plan= made here, or plan=an example"):
        load(path, skeleton)
    with pytest.raises(PlanError, match="measured on Another CPU"):
        load(path, skeleton, plan=elsewhere(model))
    assert_same_state(skeleton, before)
    loaded = load(path, skeleton, plan=here)
    assert_same_state(loaded, state(model))
    assert plan_of(loaded) == here


def test_a_given_plan_decides_the_kernels(tmp_path: Path) -> None:
    model, path = pruned(), tmp_path / "m.safetensors"
    by_rows = hand_plan(model, limit=8)
    convert(model, hand_plan(model))
    save(model, path)
    loaded = load(path, Small(), plan=by_rows)
    assert "8 reference" in loaded.get_submodule("up").kernels
    assert "* aten" in loaded.get_submodule("up").kernels


def test_a_given_plan_must_be_for_what_the_file_holds(tmp_path: Path) -> None:
    model, path = pruned(), tmp_path / "m.safetensors"
    other = pruned()
    prune(other, Unstructured(), density=0.1, layers=["up"])
    save(convert(model, hand_plan(model)), path)
    with pytest.raises(
        PlanError, match=r"layer 'up': the plan stores it as unstructured, .* as 2:4; plan for the model"
    ):
        load(path, Small(), plan=hand_plan(other))
    with pytest.raises(PlanError, match="the plan has no layer 'up'"):
        load(path, Small(), plan=Plan((), hand_plan(other).device))


def test_an_example_plans_anew(tmp_path: Path) -> None:
    model, path = pruned(), tmp_path / "m.safetensors"
    convert(model, hand_plan(model))
    save(model, path)
    rewritten(path, lambda tensors, metadata: metadata.update(plan=elsewhere(model).to_json()))
    loaded = load(path, Small(), plan=IDS)
    plan = plan_of(loaded)
    assert plan is not None
    assert plan.matches_device()
    assert any(choice.measurements for choice in plan.choices)
    torch.testing.assert_close(loaded(IDS), model(IDS))


@pytest.mark.parametrize("built_inside", [False, True])
def test_what_is_loaded_in_inference_mode_is_of_use_outside(tmp_path: Path, built_inside: bool) -> None:
    model = prune(nn.Sequential(nn.Linear(32, 32), nn.BatchNorm1d(32)).eval(), Unstructured(), density=0.2)
    x = torch.randn(4, 32, requires_grad=True)
    save(convert(model, hand_plan(model)), tmp_path / "model.safetensors")
    with torch.inference_mode(built_inside):
        skeleton = nn.Sequential(nn.Linear(32, 32), nn.BatchNorm1d(32)).eval()
    with torch.inference_mode(not built_inside):
        load(tmp_path / "model.safetensors", skeleton)
    skeleton(x).sum().backward()
    torch.testing.assert_close(skeleton(x), model(x))


def test_a_default_device_changes_nothing(tmp_path: Path) -> None:
    with torch.device("meta"):  # as skeletons are built; memory that _C writes must be the CPU's all the same
        skeleton = nn.Sequential(nn.Linear(32, 32))
        model = prune(nn.Sequential(nn.Linear(32, 32, device="cpu")), Unstructured(), density=0.2)
        save(convert(model, hand_plan(model)), tmp_path / "model.safetensors")
        load(tmp_path / "model.safetensors", skeleton)
    x = torch.randn(4, 32)
    assert torch.equal(skeleton(x), model(x))
    with torch.device("meta"):
        revert(model)
    torch.testing.assert_close(skeleton(x), model(x))


class TiedBiases(nn.Module):
    """One bias for two layers that are converted, one that stays dense, and a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(32, 32) for _ in range(3))
        self.norm = nn.LayerNorm(32)
        self.b.bias = self.c.bias = self.norm.bias = self.a.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.c(self.b(self.a(x))))  # type: ignore[no-any-return]


@pytest.mark.parametrize("kind", ["dense", "meta", "converted"])
def test_tied_biases_stay_tied(tmp_path: Path, kind: str) -> None:
    dense = prune(TiedBiases(), NM(2, 4), layers=["a", "b"])
    model = convert(dense, hand_plan(dense))
    save(model, tmp_path / "m.safetensors")
    skeleton: nn.Module = prune(TiedBiases(), NM(2, 4), layers=["a", "b"])
    if kind == "converted":
        skeleton = convert(skeleton, hand_plan(skeleton))
    elif kind == "meta":
        with torch.device("meta"):
            skeleton = TiedBiases()
    loaded = load(tmp_path / "m.safetensors", skeleton)
    for part in ("b", "c", "norm"):
        assert loaded.get_submodule(part)._parameters["bias"] is loaded.get_submodule("a")._parameters["bias"]
    x = torch.randn(3, 32)
    with torch.no_grad():
        assert torch.equal(loaded(x), model(x))


@pytest.mark.parametrize("apart", ["b", "c"])
def test_a_model_that_ties_biases_which_the_file_does_not_is_refused(tmp_path: Path, apart: str) -> None:
    model = prune(TiedBiases(), NM(2, 4), layers=["a", "b"])
    own = nn.Parameter(torch.randn(32))
    for part in ("b",) if apart == "b" else ("c", "norm"):
        model.get_submodule(part).bias = own
    save(convert(model, hand_plan(model)), tmp_path / "m.safetensors")
    skeleton = TiedBiases()
    before = state(skeleton)
    with pytest.raises(FileError, match=f"'{apart}.bias' and the bias of layer 'a' are tied in the model, not in the"):
        load(tmp_path / "m.safetensors", skeleton)
    assert_same_state(skeleton, before)


def test_a_plans_text_is_no_plan(tmp_path: Path) -> None:
    save(converted(), tmp_path / "m.safetensors")
    with pytest.raises(PlanError, match=r"expected a Plan or an example .* found the str 'plan.json'"):
        load(tmp_path / "m.safetensors", Small(), plan="plan.json")
