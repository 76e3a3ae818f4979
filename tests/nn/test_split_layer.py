"""SplitLinear: from plan to file and back, and never trained."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import ajour
from ajour.layers import find_layers
from ajour.nn import BitmapLinear, SplitLinear
from ajour.ops.calls import count_calls
from ajour.planning.device import this_device
from ajour.planning.plan import Choice, Plan, RowChoice
from ajour.terms.errors import KernelError, PlanError
from ajour.terms.pattern import Unstructured
from pruned import Split, bits, matrix_of


def pruned_model() -> nn.Sequential:
    model = nn.Sequential(nn.Linear(40, 64), nn.GELU(), nn.Linear(64, 24)).eval()
    return ajour.prune(model, Unstructured(), density=0.5)  # type: ignore[return-value]


def split_plan(model: nn.Module, op: str = "split_linear") -> Plan:
    kernels = (RowChoice(8, "cpu"), RowChoice(None, "onednn"))
    return Plan(
        tuple(
            Choice(
                layer.name, layer.shape, "float32", Unstructured(), 0.5, op, Unstructured(), kernels, reason="by hand"
            )
            for layer in find_layers(model)
        ),
        this_device(),
    )


def test_a_split_model_computes_what_the_dense_one_does_and_reverts_exactly() -> None:
    dense = pruned_model()
    weight = dense[0].weight.detach().clone()
    x = torch.randn(3, 40)
    expected = dense(x)
    model = ajour.convert(dense, split_plan(dense))
    assert all(type(model[place]) is SplitLinear for place in (0, 2))
    with count_calls() as calls, torch.no_grad():
        torch.testing.assert_close(model(x), expected)
    assert calls.kernels == {("split_linear", "cpu"): 2}
    assert torch.equal(bits(model[0].weight.clone()), bits(weight))
    assert torch.equal(bits(ajour.revert(model)[0].weight.detach()), bits(weight))


def test_a_file_holds_both_parts_and_verifies(tmp_path: Path) -> None:
    reference, x = pruned_model(), torch.randn(3, 40)
    dense = pruned_model()
    dense.load_state_dict(reference.state_dict())
    ajour.save(ajour.convert(dense, split_plan(dense)), tmp_path / "model.safetensors")
    loaded = ajour.load(tmp_path / "model.safetensors", pruned_model())
    assert type(loaded[0]) is SplitLinear
    assert ajour.verify(loaded, reference, x).ok
    with pytest.raises(PlanError, match=r"the plan stores it as bitmap_linear, .* as split_linear; plan for the model"):
        ajour.load(tmp_path / "model.safetensors", pruned_model(), plan=split_plan(reference, "bitmap_linear"))


def test_a_state_dict_is_canonical_and_loads() -> None:
    dense = pruned_model()
    a, b = (ajour.convert(model, split_plan(model)) for model in (dense, pruned_model()))
    assert list(a.state_dict())[:5] == [f"0.{name}" for name in (*matrix_of(torch.ones(1, 1), Split()).NAMES, "bias")]
    b.load_state_dict(a.state_dict())
    x = torch.randn(5, 40)
    with torch.no_grad():
        assert torch.equal(a(x), b(x))


def test_an_exported_program_computes_the_same() -> None:
    model, x = pruned_model(), torch.randn(3, 40)
    ajour.convert(model, split_plan(model))
    rows = torch.export.Dim("rows", min=2, max=64)
    exported = torch.export.export(model, (x,), dynamic_shapes=({0: rows},))
    with torch.no_grad():
        for m in (3, 40):
            x = torch.randn(m, 40)
            torch.testing.assert_close(exported.module()(x), model(x))


def test_it_is_refused_for_training_and_a_trainable_model_holds_a_bitmap() -> None:
    with pytest.raises(KernelError, match=r"SplitLinear is for inference: training would fill zeros .* a BitmapLinear"):
        SplitLinear(matrix_of(torch.randn(8, 8), Split()), trainable=True)
    model = pruned_model()
    ajour.convert(model, split_plan(model), trainable=True)
    assert type(model[0]) is BitmapLinear
