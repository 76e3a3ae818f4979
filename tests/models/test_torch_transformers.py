"""Models of torch's own transformer layers, which have fast paths that never call a layer."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from agreement import OP, PATTERNS, check
from torch import Tensor, nn

from ajour.conversion import convert
from ajour.conversion.fast_path import notes
from ajour.layers import find_layers
from ajour.terms.pattern import NM, Pattern
from forced import counting, plan_for, pruned


class VisionTransformer(nn.Module):
    """Patches, a class token, encoder layers, a head."""

    def __init__(self, causal: bool = False) -> None:
        super().__init__()
        self.patches = nn.Linear(48, 32)
        self.token = nn.Parameter(torch.randn(1, 1, 32))
        layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, activation="gelu", batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 3)
        self.pool = nn.MultiheadAttention(32, 4, batch_first=True)
        self.head = nn.Linear(32, 16)
        self.causal = causal

    def forward(self, x: Tensor) -> Tensor:
        h = torch.cat([self.token.expand(len(x), -1, -1), self.patches(x)], 1)
        mask = nn.Transformer.generate_square_subsequent_mask(h.shape[1]) if self.causal else None
        h = self.encoder(h, mask=mask, is_causal=self.causal)
        pooled, _ = self.pool(h[:, :1], h, h)
        return self.head(pooled[:, 0])  # type: ignore[no-any-return]


IMAGES = torch.randn(2, 9, 48, generator=torch.Generator().manual_seed(1))


def run(model: Any) -> Tensor:
    return model(IMAGES)  # type: ignore[no-any-return]


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("causal", [False, True], ids=["vit", "gpt"])
def test_in_eval_every_converted_layer_really_runs(pattern: Pattern, causal: bool) -> None:
    model = VisionTransformer(causal).eval()
    check(model, pattern, run, calls=2 * 3 + 2)
    assert sum("fast path" in note for note in notes(model)) == 4


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("trainable", [False, True])
def test_in_training_gradients_are_those_of_the_masked_model(pattern: Pattern, trainable: bool) -> None:
    model = pruned(VisionTransformer(), pattern)
    dense = copy.deepcopy(model)
    convert(model, plan_for(model, pattern), trainable=trainable)
    with counting(**{OP[type(pattern)]: 8}):
        y = model(IMAGES)
        y.square().sum().backward()
    wanted = dense(IMAGES)
    wanted.square().sum().backward()
    torch.testing.assert_close(y, wanted, atol=2e-5, rtol=1e-4)
    for name in ("token", "pool.in_proj_weight", "pool.out_proj.weight", "encoder.layers.0.linear1.bias", "head.bias"):
        torch.testing.assert_close(model.get_parameter(name).grad, dense.get_parameter(name).grad, atol=1e-4, rtol=1e-3)
    trained = [name for name, p in model.named_parameters() if name.startswith("head.") and p.grad is not None]
    assert len(trained) == 1 + trainable, "values train only where they were asked to"


def test_attention_is_left_alone_and_said_so() -> None:
    reasons = {layer.name: layer.reason for layer in find_layers(VisionTransformer())}
    assert "MultiheadAttention passes out_proj.weight to a functional" in str(reasons["pool.out_proj"])
    assert "MultiheadAttention passes in_proj_weight" in str(reasons["pool.in_proj_weight"])
    assert reasons["head"] is None


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_padding_does_not_bring_the_fast_path_back() -> None:
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
    model = pruned(nn.TransformerEncoder(layer, 2), NM(2, 4)).eval()
    padding = torch.arange(6) >= torch.tensor([[6], [4]])
    x = torch.randn(2, 6, 32)
    with torch.inference_mode():
        wanted = model(x, src_key_padding_mask=padding)
        convert(model, plan_for(model, NM(2, 4)))
        with counting(nm_linear=4):
            y = model(x, src_key_padding_mask=padding)
    torch.testing.assert_close(y[~padding], wanted[~padding])
