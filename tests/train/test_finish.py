"""finish: plain layers come back, with the very values that the last forward used, and other people's things stay."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

import ajour
from ajour import train
from ajour.terms.pattern import NM, Block, Unstructured
from pruned import bits, keep_mask


def test_a_trained_masked_model_converts_after_finish() -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Sequential(nn.Linear(64, 32)))
    masks = train.Masks.from_pattern(model, Block(8, 8), 0.25)
    train.mask_linears(model, masks, Block(8, 8))
    optimizer = train.MaskedAdamW(model.parameters(), masks, lr=1e-2, storage="compact")
    for _ in range(5):
        optimizer.zero_grad()
        model(torch.randn(16, 64)).square().mean().backward()
        optimizer.step()
        for name, mask in masks.items():
            assert not bits(model.get_parameter(name).detach())[~mask.dense()].any()
    x = torch.randn(4, 64)
    y = model(x).detach()
    weights = list(model.parameters())
    assert train.finish(model) is model
    assert [type(module) for module in model.modules() if not list(module.children())] == [
        nn.Linear, nn.ReLU, nn.Linear,
    ]  # fmt: skip
    assert all(a is b for a, b in zip(weights, model.parameters(), strict=True)), "optimizers would lose them"
    assert torch.equal(model(x), y)
    assert [str(layer.pattern) for layer in ajour.inspect(model).layers] == ["block 8x8", "block 8x8"]
    converted = ajour.convert(model, ajour.plan(model, x, margin=float("-inf"), progress=False))
    assert torch.allclose(converted(x), y, rtol=1e-5, atol=1e-6)


def test_a_model_that_is_a_masked_layer_itself_is_replaced() -> None:
    linear = nn.Linear(16, 8)
    assert type(train.finish(train.MaskedLinear(linear, keep_mask(Unstructured(), 8, 16)))) is nn.Linear


class Doubled(nn.Module):
    def forward(self, w: Tensor) -> Tensor:
        return 2 * w


@pytest.mark.parametrize("before", [True, False])
def test_a_weight_with_a_foreign_parametrization_is_left_alone(before: bool) -> None:
    model = nn.Sequential(nn.Linear(16, 8), nn.Linear(16, 8))
    if before:
        parametrize.register_parametrization(model[0], "weight", Doubled())
    parametrize.register_parametrization(model[0], "weight", train.SrSte(NM(2, 4)))
    if not before:
        parametrize.register_parametrization(model[0], "weight", Doubled())
    used = model[0].weight.detach().clone()
    train.finish(model)
    assert len(model[0].parametrizations.weight) == 2
    assert torch.equal(model[0].weight, used)
