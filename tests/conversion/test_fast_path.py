"""Fast paths that never call their layers are switched off, said aloud, and come back."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from ajour.conversion import convert, revert
from ajour.conversion.fast_path import notes
from ajour.terms.pattern import NM
from forced import counting, plan_for, pruned

pytestmark = pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")


@pytest.fixture
def encoder() -> nn.TransformerEncoder:
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, activation="gelu")
    return pruned(nn.TransformerEncoder(layer, 2), NM(2, 4)).eval()  # type: ignore[return-value]


def fast_calls(
    model: nn.Module, monkeypatch: pytest.MonkeyPatch, *args: Tensor, **kwargs: Tensor
) -> tuple[Tensor, int]:
    calls = []
    fast = torch._transformer_encoder_layer_fwd
    with monkeypatch.context() as patch, torch.inference_mode():
        patch.setattr(torch, "_transformer_encoder_layer_fwd", lambda *a: calls.append(1) or fast(*a))
        y = model(*args, **kwargs)
    return y, len(calls)


def test_every_converted_layer_is_called_in_eval(
    encoder: nn.TransformerEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = torch.randn(2, 5, 16)
    wanted, fast = fast_calls(encoder, monkeypatch, x)
    assert fast == 2, "without conversion the fast path is taken, or this test shows nothing"
    convert(encoder, plan_for(encoder, NM(2, 4)))
    with counting(nm_linear=4):
        y, fast = fast_calls(encoder, monkeypatch, x)
    assert fast == 0
    torch.testing.assert_close(y, wanted)


def test_one_converted_layer_of_two_is_enough(encoder: nn.TransformerEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    x, padding = torch.randn(2, 5, 16), torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    wanted, _ = fast_calls(encoder, monkeypatch, x, src_key_padding_mask=padding)
    convert(encoder, plan_for(encoder, NM(2, 4), skip=("layers.0.linear1", "layers.0.linear2")))
    with counting(nm_linear=2):
        y, fast = fast_calls(encoder, monkeypatch, x, src_key_padding_mask=padding)
    assert fast == 1
    torch.testing.assert_close(y[~padding], wanted[~padding])


def test_it_is_said_and_undone(encoder: nn.TransformerEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(2, 5, 16)
    wanted, _ = fast_calls(encoder, monkeypatch, x)
    assert notes(encoder) == []
    convert(encoder, plan_for(encoder, NM(2, 4)))
    said = notes(encoder)
    assert len(said) == 3
    assert said[0].endswith("padding (src_key_padding_mask) is no longer put out as 0.0")
    assert said[1].startswith("layers.0: the fast path of TransformerEncoderLayer is switched off")
    copied = copy.deepcopy(encoder)
    assert notes(copied) == said
    for model in (encoder, copied):
        revert(model)
        assert notes(model) == []
        y, fast = fast_calls(model, monkeypatch, x)
        assert fast == 2
        assert torch.equal(y, wanted)


def test_converting_twice_and_reverting_once_restores_it(
    encoder: nn.TransformerEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(2):
        convert(encoder, plan_for(encoder, NM(2, 4)))
    _, fast = fast_calls(revert(encoder), monkeypatch, torch.randn(2, 5, 16))
    assert fast == 2


def test_layers_without_a_fast_path_have_nothing_to_say() -> None:
    model = pruned(nn.TransformerEncoderLayer(16, 2, 32, activation=nn.SiLU()), NM(2, 4))
    convert(model, plan_for(model, NM(2, 4)))
    assert notes(model) == []
