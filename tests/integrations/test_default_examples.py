"""What a model takes is read from its config or its first layer, and an example of it runs."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
from torch import nn

from ajour.integrations import examples
from ajour.integrations.examples import intake, label, make_example, make_several
from ajour.planning.rows import call


class Text(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(50, 16), nn.Linear(16, 4)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(self.embed(ids))
        return out


@pytest.mark.parametrize(
    ("model", "one", "several"),
    [
        (nn.Sequential(nn.Linear(24, 8)), "128x24", ["1x24", "16x24", "128x24"]),
        (nn.Sequential(nn.ReLU(), nn.Conv2d(3, 4, 3)), "1x3x224x224", ["1x3x224x224", "8x3x224x224"]),
        (nn.Conv1d(2, 4, 3), "1x2x224", ["1x2x224", "8x2x224"]),
        (Text(), "1x128", ["1x16", "1x128", "8x128"]),
        (nn.LayerNorm(16), "1x128x16", ["1x16x16", "1x128x16", "8x128x16"]),
        (nn.TransformerEncoderLayer(16, 2, 32), "1x128x16", ["1x16x16", "1x128x16", "8x128x16"]),
        (nn.LSTM(12, 8), "1x128x12", ["1x16x12", "1x128x12", "8x128x12"]),
        (nn.Identity(), "1x128", ["1x128"]),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_a_model_shows_what_it_takes_by_its_first_layer(model: nn.Module, one: str, several: list[str]) -> None:
    takes = intake(model)
    assert label(takes.one) == one
    made, left_out = make_several(model)
    assert (list(made), left_out) == (several, None)
    make_example(model, takes.one)


CONFIGS: dict[str, tuple[str, dict[str, Any], str, list[str]]] = {
    "BertModel": ("BertConfig", {"vocab_size": 50}, "input_ids", ["1x16", "1x32", "8x32"]),
    "GPT2Model": ("GPT2Config", {"vocab_size": 50, "n_positions": 24}, "input_ids", ["1x16", "1x24", "8x24"]),
    "GPT2LMHeadModel": ("GPT2Config", {"vocab_size": 50}, "input_ids", ["1x1", "1x128", "8x128"]),
    "ViTModel": ("ViTConfig", {"image_size": 32}, "pixel_values", ["1x3x32x32", "8x3x32x32"]),
    "CLIPVisionModel": ("CLIPVisionConfig", {"image_size": 64}, "pixel_values", ["1x3x64x64", "8x3x64x64"]),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_hugging_face_models_say_what_they_take(name: str) -> None:
    transformers = pytest.importorskip("transformers")
    config, sizes, argument, several = CONFIGS[name]
    small = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    small |= {"max_position_embeddings": 32} if name == "BertModel" else {}
    model = getattr(transformers, name)(getattr(transformers, config)(**small, **sizes)).eval()
    made, left_out = make_several(model)
    assert (list(made), left_out) == (several, None)
    assert all(argument in inputs for inputs in made.values())


def test_an_encoder_decoder_gets_tokens_for_both() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.T5Config(vocab_size=50, d_model=32, d_kv=16, d_ff=64, num_layers=1, num_heads=2)
    model = transformers.T5Model(config).eval()
    example = make_example(model, (1, 8))
    assert set(example) == {"input_ids", "attention_mask", "decoder_input_ids"}
    assert call(model, example).last_hidden_state.shape == (1, 8, 32)


def test_examples_are_of_the_model_s_dtype_and_the_same_every_time() -> None:
    model = nn.Sequential(nn.Linear(24, 8)).to(torch.bfloat16)
    assert make_example(model, (2, 24)).dtype == torch.bfloat16
    assert torch.equal(make_example(model, (2, 24)), make_example(model, (2, 24)))


class RefusingError(Exception):
    pass


class Picky(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise RefusingError("never on\na Sunday")


def test_whatever_a_forward_raises_is_told_with_its_place() -> None:
    with pytest.raises(
        ValueError,
        match=r"^the model does not take an input of shape 2x8: RefusingError: never on \(.*_examples.py, line",
    ) as refused:
        make_example(Picky(8, 8), (2, 8))
    assert isinstance(refused.value.__cause__, RefusingError)


def test_sizes_that_would_take_long_are_left_out_aloud(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 1.0, 1.0, 5.5])
    monkeypatch.setattr(examples.time, "perf_counter", lambda: next(clock))
    made, left_out = make_several(Text())
    assert list(made) == ["1x16", "1x128"]
    assert left_out == "one pass at 1x128 takes 4.5 s, so no larger size was timed; ask with --shape 8x128"
    assert time is examples.time
