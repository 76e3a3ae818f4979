"""convert: every layer that the plan has an op for, all or nothing."""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn.utils import prune as torch_prune

from ajour.conversion import convert, revert
from ajour.conversion.swap import Swap
from ajour.layers import find_layers
from ajour.nn import BitmapLinear, BlockLinear, DenseLinear, NMLinear
from ajour.planning.plan import Choice, Plan, RowChoice
from ajour.planning.planner import plan as make_plan
from ajour.terms.errors import ConversionError, PlanError
from ajour.terms.pattern import NM, Block, Dense, Pattern, Unstructured
from forced import REFERENCE, choice_for, counting, plan_for, pruned, state_of


def mlp(k: int = 32) -> nn.Sequential:
    return nn.Sequential(nn.Linear(k, 24), nn.Tanh(), nn.Linear(24, 16, bias=False))


@pytest.mark.parametrize(
    ("pattern", "kind"),
    [(NM(2, 4), NMLinear), (Block(4, 4), BlockLinear), (Unstructured(), BitmapLinear), (Dense(), DenseLinear)],
    ids=str,
)
def test_a_converted_model_computes_the_same_through_its_op(pattern: Pattern, kind: type) -> None:
    model = pruned(mlp(), pattern)
    dense, x = copy.deepcopy(model), torch.randn(5, 32)
    kernels = (RowChoice(None, "aten"),) if isinstance(pattern, Dense) else REFERENCE
    assert convert(model, plan_for(model, pattern, kernels)) is model
    assert type(model[0]) is type(model[2]) is kind
    with counting(**{kind.op.name: 2}):  # type: ignore[attr-defined]
        y = model(x)
    torch.testing.assert_close(y, dense(x))


def test_the_kernels_of_the_plan_serve_their_rows() -> None:
    model = pruned(mlp(), NM(2, 4))
    convert(model, plan_for(model, NM(2, 4), (RowChoice(4, "reference"), RowChoice(None, "aten"))))
    with counting(nm_linear=4) as calls:
        model(torch.randn(4, 32))
        model(torch.randn(5, 32))
    assert calls.kernels == {("nm_linear", "reference"): 2, ("nm_linear", "aten"): 2}


def test_layers_that_the_plan_keeps_are_the_same_objects() -> None:
    model = pruned(mlp(), NM(2, 4))
    kept = model[2]
    convert(model, plan_for(model, NM(2, 4), skip=("2",)))
    assert model[2] is kept
    with counting(nm_linear=1):
        model(torch.randn(5, 32))


def test_the_dense_weight_is_freed_and_the_bias_stays_the_same_parameter() -> None:
    model = pruned(mlp(), NM(2, 4))
    weight, bias = model[0].weight, model[0].bias
    weight.grad = torch.ones_like(weight)
    convert(model, plan_for(model, NM(2, 4)))
    assert weight.numel() == 0, "whoever still holds the old parameter holds no memory"
    assert weight.grad is None
    assert model[0].bias is bias


def test_dense_weights_go_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    model = pruned(nn.Sequential(*(nn.Linear(16, 16) for _ in range(4))), NM(2, 4))
    weights = [layer.weight for layer in model]
    apply, held = Swap.apply, []

    def watched(self: Swap) -> None:
        apply(self)
        held.append(sum(weight.numel() for weight in weights))

    monkeypatch.setattr(Swap, "apply", watched)
    convert(model, plan_for(model, NM(2, 4)))
    assert held == [3 * 256, 2 * 256, 256, 0]


def test_trainable_layers_train_and_dense_choices_stay_linear() -> None:
    model = pruned(mlp(), NM(2, 4))
    plan = plan_for(model, NM(2, 4))
    dense = choice_for("2", (16, 24), Dense(), (RowChoice(None, "aten"),))
    convert(model, replace(plan, choices=(plan["0"], dense)), trainable=True)
    assert model[0].trainable
    assert type(model[2]) is nn.Linear
    zeros = model[0].weight == 0
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with counting(nm_linear=1):
        model(torch.randn(5, 32)).square().sum().backward()
    optimizer.step()
    revert(model)
    assert not bool(model[0].weight[zeros].any())
    assert all(p.requires_grad for p in model.parameters())


def test_training_fills_no_zeros_that_a_coarser_block_size_holds() -> None:
    model = pruned(mlp(), Block(8, 8))
    found = plan_for(model, Block(8, 8))
    coarser = replace(found, choices=tuple(replace(choice, stored=Block(16, 16)) for choice in found.choices))
    dead = model[0].weight == 0
    convert(model, coarser, trainable=True)
    assert model[0].pattern == Block(8, 8)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    model(torch.randn(5, 32)).square().sum().backward()
    optimizer.step()
    assert not bool(revert(model)[0].weight[dead].any())
    finer = replace(found, choices=tuple(replace(choice, stored=Block(4, 4)) for choice in found.choices))
    assert convert(pruned(mlp(), Block(8, 8)), finer, trainable=True)[0].pattern == Block(4, 4)


def test_an_example_instead_of_a_plan_means_plan_first(monkeypatch: pytest.MonkeyPatch) -> None:
    from ajour.planning import planner

    model, example = pruned(mlp(), NM(2, 4)), torch.randn(5, 32)
    seen = []

    def plan(asked: nn.Module, given: object, *, trainable: bool) -> Plan:
        seen.append((asked, given, trainable))
        return plan_for(asked, NM(2, 4))

    monkeypatch.setattr(planner, "plan", plan)
    convert(model, example)
    assert type(model[0]) is NMLinear
    other = pruned(mlp(), NM(2, 4))
    convert(other, example, trainable=True)
    assert other[0].trainable
    assert seen == [(model, example, False), (other, example, True)]


def test_a_measured_plan_converts_and_the_result_can_be_planned_again() -> None:
    model, example = (
        pruned(nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64)), NM(2, 4)),
        torch.randn(8, 64),
    )
    wanted = model(example)
    for _ in range(2):
        plan = make_plan(model, example, margin=float("-inf"), progress=False)
        assert all(choice.op for choice in plan.choices)
        convert(model, plan)
        ops = Counter(choice.op for choice in plan.choices)
        with counting(**ops):
            torch.testing.assert_close(model(example), wanted)
    assert model[0].activation == "relu"


def test_a_model_that_is_one_layer_becomes_one_layer() -> None:
    model = pruned(nn.Linear(32, 24), NM(2, 4))
    w, x = model.weight.detach().clone(), torch.randn(3, 32)
    new = convert(model, plan_for(model, NM(2, 4)))
    assert isinstance(new, NMLinear)
    torch.testing.assert_close(new(x), nn.functional.linear(x, w, new.bias))
    assert revert(new) is model
    assert torch.equal(model.weight, w)


def test_a_converted_model_can_be_converted_again() -> None:
    model = pruned(mlp(), NM(2, 4))
    before, x = copy.deepcopy(model), torch.randn(5, 32)
    dense = model[0]
    convert(model, plan_for(model, NM(2, 4)))
    convert(model, plan_for(model, Unstructured()))
    with counting(bitmap_linear=2):
        torch.testing.assert_close(model(x), before(x))
    convert(model, plan_for(model, Dense(), (RowChoice(None, "aten"),)))
    with counting(dense_linear=2):
        torch.testing.assert_close(model(x), before(x))
    revert(model)
    assert model[0] is dense
    assert torch.equal(model(x), before(x))


def test_masks_of_torch_prune_are_applied_and_kept_until_the_end() -> None:
    model = mlp()
    torch_prune.custom_from_mask(model[0], "weight", pruned(nn.Linear(32, 24), NM(2, 4)).weight != 0)
    torch_prune.l1_unstructured(model[0], "bias", 0.5)
    x = torch.randn(5, 32)
    y, bias = model(x), model[0].bias.detach().clone()
    pruned(model[2], NM(2, 4))
    y = model(x)
    state = state_of(model)
    plan = plan_for(model, NM(2, 4))
    with pytest.raises(ConversionError, match="layer '2'"):
        convert(model, replace(plan, choices=(plan["0"], choice_for("2", (16, 24), NM(1, 4)))))
    assert state_of(model) == state
    convert(model, plan)
    with counting(nm_linear=2):
        torch.testing.assert_close(model(x), y)
    assert torch.equal(model[0].bias, bias)
    assert model[0].bias.requires_grad
    revert(model)
    assert type(model[0]) is nn.Linear
    assert not model[0]._forward_pre_hooks
    torch.testing.assert_close(model(x), y)


def refused(model: nn.Module, plan: Plan, error: type[Exception], match: str, **options: bool) -> None:
    before = state_of(model)
    with pytest.raises(error, match=match):
        convert(model, plan, **options)
    assert state_of(model) == before


def test_a_weight_that_does_not_fit_is_refused_and_nothing_changes() -> None:
    model = pruned(mlp(), NM(2, 4))
    plan = plan_for(model, NM(2, 4))
    with torch.no_grad():
        model[2].weight[3, :3] = 1.0
    refused(
        model, plan, ConversionError, "layer '2': the plan stores its weight as 2:4, which does not hold it: .*row 3"
    )


def test_plans_for_other_models_are_refused_by_name() -> None:
    model = pruned(mlp(), NM(2, 4))
    plan = plan_for(model, NM(2, 4))
    refused(
        mlp(36), plan, PlanError, "another model: 0: the plan was made for 24x32 float32, the model has 24x36 float32"
    )
    refused(mlp().half(), plan, PlanError, "0: the plan was made for 24x32 float32, the model has 24x32 float16")
    refused(nn.Sequential(nn.Linear(32, 24)), plan, PlanError, "another model: 2: the plan knows this layer")
    refused(nn.Sequential(*mlp(), nn.Linear(16, 8)), plan, PlanError, "3: the model has this layer")


def test_plans_for_other_devices_are_refused_by_name() -> None:
    model = pruned(mlp(), NM(2, 4))
    plan = plan_for(model, NM(2, 4))
    plan = replace(plan, device=replace(plan.device, name="Abacus 3000"))
    refused(model, plan, PlanError, "another kind of device: the plan was measured on Abacus 3000")


def test_kernels_that_are_not_there_or_refuse_are_named() -> None:
    model = pruned(mlp(), NM(2, 4))
    refused(
        model, plan_for(model, NM(2, 4), (RowChoice(None, "magic"),)), ConversionError, "layer '0': .*no kernel 'magic'"
    )
    model = model.half()
    plan = plan_for(model, NM(2, 4), (RowChoice(None, "onednn"),))
    refused(model, plan, ConversionError, "layer '0': kernel 'onednn' refuses it: oneDNN takes float32 and bfloat16")
    plan = replace(plan, choices=(replace(plan["0"], op="magic_linear"), plan["2"]))
    refused(model, plan, PlanError, "layer '0': the plan names the op 'magic_linear'; there are nm_linear")


def test_layers_with_a_reason_are_refused_with_it() -> None:
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16))
    model[1].weight = model[0].weight
    pruned(model[0], NM(2, 4))
    choices = tuple(choice_for(layer.name, layer.shape, NM(2, 4)) for layer in find_layers(model))
    plan = replace(plan_for(model, NM(2, 4)), choices=choices)
    refused(model, plan, ConversionError, "layer '0' can't be converted: its weight is tied to 1.weight")
    assert model[0].weight is model[1].weight


def test_a_plan_that_keeps_everything_changes_nothing() -> None:
    model = mlp()
    plan = plan_for(model, NM(2, 4), skip=("0", "2"))
    assert all(choice == Choice(choice.layer, choice.shape, "float32", reason="kept") for choice in plan.choices)
    before = state_of(model)
    convert(model, plan)
    assert state_of(model) == before


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes_convert_and_come_back(dtype: torch.dtype) -> None:
    model = pruned(mlp(), NM(2, 4)).to(dtype)
    before, x = copy.deepcopy(model), torch.randn(3, 32, dtype=dtype)
    convert(model, plan_for(model, NM(2, 4)))
    torch.testing.assert_close(model(x), before(x))
    revert(model)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before.parameters(), strict=True))


@pytest.mark.parametrize("built", [False, True], ids=["built outside", "built inside"])
def test_inference_mode_leaves_no_trace(built: bool) -> None:
    with torch.inference_mode(built):
        model = pruned(mlp(), NM(2, 4))
    plan, x = plan_for(model, NM(2, 4)), torch.randn(3, 32, requires_grad=True)
    with torch.inference_mode():
        wanted = model(x).clone()
        convert(model, plan)
    if not built:
        model(x).sum().backward()
        assert x.grad is not None
    with torch.inference_mode():
        torch.testing.assert_close(model(x), wanted)
        revert(model)
        assert torch.equal(model(x), wanted)
    if not built:
        model(x).sum().backward()
