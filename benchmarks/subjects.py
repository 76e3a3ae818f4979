"""The models that the models suite times, and the zeros that they are given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ajour.integrations.minilm import load_minilm, tokens
from ajour.terms.pattern import NM, Block, Pattern, Unstructured
from benchmarks.decoder_layers import llama
from benchmarks.encoder import encoder

Zeros = tuple[Pattern, float | None]


@dataclass(frozen=True)
class Subject:
    """A model with its zeros to be, and the sizes (batch, tokens) to time it at."""

    name: str
    make: Callable[[], nn.Module]
    example: Callable[[nn.Module, int, int], Any]
    pattern: Pattern
    density: float | None
    sizes: tuple[tuple[int, int], ...]
    dtype: torch.dtype = torch.float32
    layers: tuple[str, ...] | None = None

    def __str__(self) -> str:
        return f"{self.name} {self.pattern}"

    @property
    def kept(self) -> float:
        """The share of weights that stays."""
        if self.density is not None:
            return self.density
        return self.pattern.keep / self.pattern.group if isinstance(self.pattern, NM) else 1.0


def subjects(device: str = "cpu") -> list[Subject]:
    """Those that stand for the device, "cpu" or "cuda"."""
    return _on_gpu() if device == "cuda" else _on_cpu()


def _on_cpu() -> list[Subject]:
    """MiniLM in three patterns; a 12-layer encoder, a block of ViT-H/14 and a GPT-2-like decoder at 90 % of blocks."""
    sizes = ((1, 16), (8, 32), (32, 128))
    zeros: list[Zeros] = [(NM(2, 4), None), (Block(32, 32), 0.2), (Unstructured(), 0.1)]
    made = [Subject("MiniLM-L6", _minilm, tokens, *each, sizes, layers=("encoder.*",)) for each in zeros]
    vit, gpt = partial(encoder, 1, 1280, 16, 5120), partial(encoder, causal=True)
    for dtype in (torch.float32, torch.bfloat16):
        ninety = (Block(32, 32), 0.1)
        made.append(Subject("encoder 12x768", encoder, _normal(768), *ninety, ((1, 128), (4, 128)), dtype))
        made.append(Subject("ViT-H/14 block", vit, _normal(1280), *ninety, ((1, 257),), dtype))
        for each in (ninety, (NM(2, 4), None)):
            made.append(Subject("GPT-2-like decoder", gpt, _normal(768), *each, ((1, 1), (8, 1), (1, 128)), dtype))
    return made


def _on_gpu() -> list[Subject]:
    """Decoding at Llama-3-8B's shape, and four blocks of ViT-H/14 at the batch of the published figures."""
    zeros: list[Zeros] = [(NM(2, 4), None), *((Unstructured(), kept) for kept in (0.5, 0.3, 0.1))]
    zeros += [(Block(64, 64), kept) for kept in (0.1, 0.2)]
    bfloat16 = torch.bfloat16
    decode = ((1, 1), (8, 1), (32, 1))
    made = [
        Subject("Llama-3-8B, 4 layers", partial(llama, 4), _normal(4096), *each, decode, bfloat16) for each in zeros
    ]
    vit = partial(encoder, 4, 1280, 16, 5120)
    for density in (0.2, 0.1):
        pattern = Block(64, 64)
        made.append(
            Subject("ViT-H/14, 4 blocks", vit, _normal(1280), pattern, density, ((1, 257), (256, 257)), bfloat16)
        )
    return made


def smoke_subjects() -> list[Subject]:
    """A small encoder and small decoders that only show that the suite works."""
    small = (Block(16, 16), 0.25)
    return [
        Subject("encoder 2x64", partial(encoder, 2, 64, 4, 128), _normal(64), *small, ((1, 8),)),
        Subject("llama 1x256", partial(llama, 1, 256, 512, 1, 2, 8), _normal(256), NM(2, 4), None, ((2, 1),)),
        Subject("llama 1x256", partial(llama, 1, 256, 512, 1, 2, 8), _normal(256), *small, ((2, 1),)),
    ]


def _minilm() -> nn.Module:
    return load_minilm()[0]


def _normal(width: int) -> Callable[[nn.Module, int, int], Tensor]:
    def example(model: nn.Module, batch: int, length: int) -> Tensor:
        weight = next(model.parameters())
        x = torch.randn(batch, length, width, generator=torch.Generator().manual_seed(length))
        return x.to(weight.device, weight.dtype)

    return example
