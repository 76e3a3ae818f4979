"""A model of Llama 3's shape with random weights, one decoding step at a time on a full static cache."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, scaled_dot_product_attention, silu


@dataclass(frozen=True)
class Shape:
    """Sizes of a decoder: kv_heads of heads hold keys and values; context: tokens in the cache, with the new one."""

    layers: int = 32
    width: int = 4096
    heads: int = 32
    kv_heads: int = 8
    inner: int = 14336
    vocabulary: int = 128256
    context: int = 1024
    batch: int = 32

    @property
    def head(self) -> int:
        """Features of one head."""
        return self.width // self.heads


LLAMA_8B = Shape()
SMOKE = Shape(layers=2, width=64, heads=4, kv_heads=2, inner=96, vocabulary=64, context=16, batch=4)


class Norm(nn.Module):
    """x / sqrt(mean(x^2)) * weight."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        wide = x if x.dtype == torch.float64 else x.float()
        return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-5)).to(x.dtype) * self.weight


class Block(nn.Module):
    """Attention over the cache and a gated MLP, for one new token of each sequence."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        kept = shape.kv_heads * shape.head
        self.shape = shape
        self.before_attention, self.before_mlp = Norm(shape.width), Norm(shape.width)
        self.q, self.o = (nn.Linear(shape.width, shape.width, bias=False) for _ in range(2))
        self.k, self.v = (nn.Linear(shape.width, kept, bias=False) for _ in range(2))
        self.gate, self.up = (nn.Linear(shape.width, shape.inner, bias=False) for _ in range(2))
        self.down = nn.Linear(shape.inner, shape.width, bias=False)
        for name in ("keys", "values"):
            self.register_buffer(name, torch.randn(shape.batch, shape.kv_heads, shape.context, shape.head))

    def forward(self, x: Tensor) -> Tensor:
        shape, batch = self.shape, x.shape[0]
        inner = self.before_attention(x)
        q = _turned(self.q(inner).view(batch, shape.heads, 1, shape.head), shape.context - 1)
        keys, values = self.keys[:batch], self.values[:batch]
        keys[:, :, -1:] = _turned(self.k(inner).view(batch, shape.kv_heads, 1, shape.head), shape.context - 1)
        values[:, :, -1:] = self.v(inner).view(batch, shape.kv_heads, 1, shape.head)
        attended = scaled_dot_product_attention(q, keys, values, enable_gqa=True)
        x = x + self.o(attended.reshape(batch, 1, shape.width))
        inner = self.before_mlp(x)
        y: Tensor = x + self.down(silu(self.gate(inner)) * self.up(inner))
        return y


class Decoder(nn.Module):
    """tokens: int64 [batch, 1] -> logits [batch, vocabulary]."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(shape.vocabulary, shape.width))
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.norm = Norm(shape.width)
        self.head = nn.Linear(shape.width, shape.vocabulary, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.run(tokens, lambda part: part)

    def run(self, tokens: Tensor, prepared: Callable[[nn.Module], nn.Module]) -> Tensor:
        """The step, with every part as `prepared` makes it when its turn comes."""
        x = embedding(tokens, self.table).to(next(prepared(self.norm).parameters()).dtype)
        for block in self.blocks:
            x = prepared(block)(x)
        logits: Tensor = prepared(self.head)(prepared(self.norm)(x))[:, 0]
        return logits

    def exact(self, tokens: Tensor) -> Tensor:
        """The logits in float64; one block at a time, as all of them need not fit."""
        return self.run(tokens, lambda part: copy.deepcopy(part).double())


def _turned(x: Tensor, position: int) -> Tensor:
    """Rotary position: pairs (i, i + half) of a head turned by position / 500000^(2 i / head)."""
    half = x.shape[-1] // 2
    angle = position * 500000.0 ** (-torch.arange(half, device=x.device, dtype=torch.float64) / half)
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


def decoder(shape: Shape, device: torch.device, dtype: torch.dtype) -> Decoder:
    """Random weights, the same in every run on one kind of device; torch's own random state is not touched."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            with device:
                return Decoder(shape).eval().requires_grad_(False)
        finally:
            torch.set_default_dtype(before)
