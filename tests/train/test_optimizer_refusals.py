"""What a masked optimizer refuses, by name and before a step is taken."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ajour.terms.errors import KernelError, PatternError
from ajour.train import MaskedAdamW, MaskedSGD, Masks
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
