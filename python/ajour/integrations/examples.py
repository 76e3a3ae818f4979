"""Inputs for a model: which one its forward takes, sizes where the caller names none, and random values."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ajour.integrations.foreign import Foreign
from ajour.planning.rows import call, untouched

Shape = tuple[int, ...]
ANY = (1, 128)  # of a model that does not show what it takes
TOKENS = ((1, 16), (1, 128), (8, 128))  # batch x tokens: a phrase, a text, a batch of texts
DECODING = ((1, 1), (1, 128), (8, 128))  # of a model that writes: a step with one token, prompts
BATCHES = (1, 8)  # of pictures
ROWS = (1, 16, 128)  # of features
PIXELS = 224  # of a picture's side where the model does not say
LONGEST_PASS = 2.0  # seconds that one pass may take at a size that nobody asked for
STREAMS = ("embed_dim", "normalized_shape", "input_size")  # of layers that take batch x tokens x features
CONVOLUTIONS = {nn.Conv1d: 1, nn.Conv2d: 2, nn.Conv3d: 3}


@dataclass(frozen=True)
class Intake:
    """What a model takes.

    name:    of the argument, None where there is one tensor by position. vocabulary: of token ids; None for floats.
    one:     the shape of an example where the caller names none. several: shapes that show how the model scales.
    decoder: whether its decoder wants token ids of its own.
    """

    name: str | None
    vocabulary: int | None
    one: Shape
    several: tuple[Shape, ...]
    decoder: bool = False


def intake(model: nn.Module) -> Intake:
    """From a Hugging Face model's config, else from the first layer: an embedding, a convolution, a linear layer."""
    config = getattr(model, "config", None)
    name = getattr(model, "main_input_name", None)
    if config is None or not isinstance(name, str):
        return _by_first_layer(model)
    vocabulary, decoder = getattr(config, "vocab_size", None), bool(getattr(config, "is_encoder_decoder", False))
    if name == "input_ids" and vocabulary is not None:
        longest = getattr(config, "max_position_embeddings", None) or TOKENS[-1][1]
        writes = not decoder and getattr(model, "can_generate", bool)()
        shapes = DECODING if writes else TOKENS
        sizes = tuple(dict.fromkeys((batch, min(tokens, longest)) for batch, tokens in shapes))
        return Intake(name, int(vocabulary), (1, min(ANY[1], longest)), sizes, decoder)
    sides = getattr(config, "image_size", None)
    if name == "pixel_values" and sides is not None:
        height, width = sides if isinstance(sides, (list, tuple)) else (sides, sides)
        picture = (int(getattr(config, "num_channels", 3)), int(height), int(width))
        return Intake(name, None, (1, *picture), tuple((batch, *picture) for batch in BATCHES))
    return Intake(name, None, ANY, (ANY,))


def _by_first_layer(model: nn.Module) -> Intake:
    first = next((module for module in model.modules() if module._parameters), None)
    if isinstance(first, nn.Embedding):
        return Intake(None, first.num_embeddings, ANY, TOKENS)
    if isinstance(first, nn.Linear) or hasattr(first, "in_features"):
        features = int(first.in_features)  # type: ignore[union-attr, arg-type]
        return Intake(None, None, (ANY[1], features), tuple((rows, features) for rows in ROWS))
    if stream := next((getattr(first, name) for name in STREAMS if hasattr(first, name)), None):
        width = int(stream[-1] if isinstance(stream, tuple) else stream)
        return Intake(None, None, (*ANY, width), tuple((*shape, width) for shape in TOKENS))
    for kind, sides in CONVOLUTIONS.items():
        if isinstance(first, kind):
            picture = (first.in_channels, *(PIXELS,) * sides)
            return Intake(None, None, (1, *picture), tuple((batch, *picture) for batch in BATCHES))
    return Intake(None, None, ANY, (ANY,))


def make_example(model: nn.Module, shape: Shape) -> Tensor | dict[str, Any]:
    """Random inputs of that shape: token ids, or normal floats of the model's dtype.

    The model runs on them once, and is as it was. Raises ValueError, with the model's own error, if it can't.
    """
    sides = label(shape)
    with Foreign(lambda said: ValueError(f"no input of shape {sides} can be made here: {said}")):
        example = _random(model, shape)
    with (
        Foreign(lambda said: ValueError(f"the model does not take an input of shape {sides}: {said}")),
        untouched(model, ()),
        torch.no_grad(),
    ):
        call(model, example)
    return example


def make_several(model: nn.Module) -> tuple[dict[str, Any], str | None]:
    """(examples by label of the sizes that suit the model, a sentence on those that were left out as they take long).

    Raises ValueError where the model does not take the first one.
    """
    made: dict[str, Any] = {}
    shapes = intake(model).several
    for place, shape in enumerate(shapes):
        begin = time.perf_counter()
        made[label(shape)] = make_example(model, shape)
        took = time.perf_counter() - begin
        if took > LONGEST_PASS and (left := shapes[place + 1 :]):
            asked = " ".join(f"--shape {label(each)}" for each in left)
            return made, f"one pass at {label(shape)} takes {took:.1f} s, so no larger size was timed; ask with {asked}"
    return made, None


def label(shape: Shape) -> str:
    """8x128."""
    return "x".join(map(str, shape))


def _random(model: nn.Module, shape: Shape) -> Tensor | dict[str, Any]:
    takes = intake(model)
    generator = torch.Generator().manual_seed(0)
    first = next(model.parameters(), torch.empty(0))
    if takes.vocabulary is None:
        floats = torch.randn(shape, generator=generator).to(first)
        return floats if takes.name is None else {takes.name: floats}
    ids = torch.randint(takes.vocabulary, shape, generator=generator).to(first.device)
    if takes.name is None:
        return ids
    inputs: dict[str, Any] = {takes.name: ids, "attention_mask": torch.ones_like(ids)}
    return inputs | ({"decoder_input_ids": ids} if takes.decoder else {})
