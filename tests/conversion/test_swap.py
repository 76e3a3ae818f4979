"""What stands in a layer's place shows what the layer showed."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from ajour.conversion import convert, revert
from ajour.io import load, save
from ajour.nn import NMLinear
from ajour.terms.pattern import NM
from factories import conv1d
from forced import plan_for, pruned


@pytest.mark.parametrize("trainable", [False, True], ids=["frozen", "trainable"])
def test_a_converted_conv1d_shows_its_weight_as_a_conv1d_does(trainable: bool, tmp_path: Path) -> None:
    model = pruned(nn.Sequential(conv1d(24, 24), conv1d(16, 24)), NM(2, 4))
    dense, x = copy.deepcopy(model), torch.randn(3, 24)
    convert(model, plan_for(model, NM(2, 4)), trainable=trainable)
    save(model, tmp_path / "m.safetensors")
    loaded = load(tmp_path / "m.safetensors", copy.deepcopy(dense))
    for twin in (model, copy.deepcopy(model), loaded, convert(loaded, plan_for(loaded, NM(2, 4)))):
        for layer, own in zip(twin, dense, strict=True):
            assert isinstance(layer, NMLinear)
            assert torch.equal(layer.weight, own.weight)
            assert layer.weight.stride() == own.weight.stride()
            assert (layer.nf, layer.nx) == (own.nf, own.nx)
        torch.testing.assert_close(twin(x), dense(x))
        compiled = torch.compile(lambda x, layer=twin[1]: x @ layer.weight, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(x), x @ dense[1].weight)
    if trainable:
        (found,) = torch.autograd.grad((x @ model[1].weight).sum(), model[1].get_parameter("values"))
        kept = (dense[1].weight != 0) * x.sum(0).unsqueeze(1)
        torch.testing.assert_close(found.sum(), kept.sum())
    assert torch.equal(revert(model)[1].weight, dense[1].weight)
