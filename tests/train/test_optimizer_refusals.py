"""What a masked optimizer refuses, by name and before a step is taken."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ajour.terms.errors import KernelError, PatternError
from ajour.train import Mask, MaskedAdamW, MaskedSGD, Masks
from masked import small


def test_what_does_not_fit_is_refused_by_name_before_a_step() -> None:
    model, masks = small()
    with pytest.raises(PatternError, match=r"'2.weight', which is no parameter of this optimizer"):
        MaskedAdamW(model[0].parameters(), masks)
    with pytest.raises(PatternError, match=r"'2.weight', which is no parameter of this optimizer"):
        MaskedAdamW([("0.weight", model[0].weight)], masks)
    with pytest.raises(PatternError, match=r"which is no parameter of this optimizer; give it model.named_parameters"):
        MaskedSGD(model.parameters(), Masks(dict(masks)))
    wrong = Masks.from_tensors({"0.weight": torch.ones(37, 50)})
    with pytest.raises(PatternError, match=r"'0.weight': its mask is \(37, 50\), the parameter \(50, 37\)"):
        MaskedAdamW(model.named_parameters(), wrong)
    masks["again"] = masks["0.weight"]
    with pytest.raises(PatternError, match=r"'again' and '0.weight' are one tied parameter under two masks"):
        MaskedAdamW([("again", model[0].weight), *model.named_parameters()][:1], masks)


def test_bad_settings_are_refused() -> None:
    model, masks = small()
    for options, match in (
        ({"foreach": True}, "one fused pass; leave foreach"),
        ({"fused": False}, "one fused pass"),
        ({"lr": -1.0}, "lr=-1.0 is out of range"),
        ({"betas": (1.0, 0.9)}, "beta1=1.0 is out of range"),
        ({"storage": "sparse"}, "storage is one of dense, compact, found 'sparse'"),
        ({"kernel": "fast"}, "masked_adamw has no kernel 'fast'"),
        ({"lr": torch.ones(2)}, "lr is a tensor of 2 elements"),
    ):
        with pytest.raises(KernelError, match=match):
            MaskedAdamW(model.named_parameters(), masks, **options)
    with pytest.raises(KernelError, match=r"nesterov needs a momentum"):
        MaskedSGD(model.named_parameters(), masks, nesterov=True)
    embedding = nn.Embedding(5, 4, sparse=True)
    optimizer = MaskedSGD(embedding.named_parameters())
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(KernelError, match=r"'weight' has a gradient of layout torch.sparse_coo"):
        optimizer.step()


def test_a_refused_group_leaves_nothing_behind() -> None:
    model, masks = small()
    optimizer = MaskedAdamW(model.named_parameters(), masks)
    good, bad = nn.Parameter(torch.randn(4, 4)), nn.Parameter(torch.randn(2, 2))
    masks.update({"good": Mask.from_dense(torch.zeros(4, 4)), "bad": Mask.from_dense(torch.ones(3, 3))})
    with pytest.raises(PatternError, match=r"'bad': its mask is \(3, 3\), the parameter \(2, 2\)"):
        optimizer.add_param_group({"params": [("good", good), ("bad", bad)]})
    assert len(optimizer.param_groups) == 1
    assert (good != 0).all(), "no mask of the group may have been applied"
    del masks["bad"]
    optimizer.add_param_group({"params": [("good", good), ("bad", bad)]})
    assert not good.any()
    for p in (*model.parameters(), good, bad):
        p.grad = torch.randn_like(p)
    optimizer.step()
    assert not good.any()
    assert len(optimizer.state_dict()["param_groups"]) == 2


def test_a_refused_optimizer_has_touched_no_weight() -> None:
    model, masks = small()
    before = [p.detach().clone() for p in model.parameters()]
    masks = Masks({**masks, "2.weight": Mask.from_dense(torch.ones(3, 3))})
    with pytest.raises(PatternError, match=r"'2.weight': its mask is"):
        MaskedAdamW(model.named_parameters(), masks)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_one_mask_is_not_for_two_parameters_of_one_name() -> None:
    model, masks = small()
    twin, _ = small()
    with pytest.raises(PatternError, match=r"2 parameters are called '0.weight', and one mask is; name them apart"):
        MaskedAdamW([*model.named_parameters(), *twin.named_parameters()], masks)


def test_complex_parameters_are_left_to_torch() -> None:
    with pytest.raises(KernelError, match=r"'w' is of torch.complex64; expected floating point"):
        MaskedSGD([("w", nn.Parameter(torch.randn(3, dtype=torch.complex64)))])


@pytest.mark.filterwarnings("ignore:optimizer contains a parameter group with duplicate parameters")
def test_a_parameter_that_is_given_twice_is_refused_by_both_names() -> None:
    """One launch would update it from two threads at once; torch warns."""
    model, masks = small()
    weight = model[0].weight
    with pytest.raises(PatternError, match=r"'twin' is here already as '0.weight' \(tied\?\); give each"):
        MaskedAdamW([("0.weight", weight), ("twin", weight)], {"0.weight": masks["0.weight"]})
    with pytest.raises(PatternError, match=r"'a parameter' is here already as 'parameter 0'"):
        MaskedAdamW([weight, weight])
