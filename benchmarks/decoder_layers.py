"""Decoder layers of Llama's shape that decode one token for each sequence, over a full static cache."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import rms_norm, scaled_dot_product_attention, silu

HEAD = 128


class DecoderLayer(nn.Module):
    """x: [batch, 1, width]; attends to `length` cached tokens, the last of which is this one. No rotary embedding: it
    is the same on both sides and next to nothing of a step.
    """

    def __init__(self, width: int, hidden: int, key_heads: int, batch: int, length: int) -> None:
        super().__init__()
        self.heads, self.key_heads = width // HEAD, key_heads
        self.qkv = nn.Linear(width, width + 2 * key_heads * HEAD, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.gate, self.up = nn.Linear(width, hidden, bias=False), nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)
        self.register_buffer("keys", torch.randn(batch, key_heads, length, HEAD))
        self.register_buffer("values", torch.randn(batch, key_heads, length, HEAD))

    def forward(self, x: Tensor) -> Tensor:
        batch, _, width = x.shape
        heads = [self.heads, self.key_heads, self.key_heads]
        normed = self.qkv(rms_norm(x, (width,))).view(batch, 1, -1, HEAD).transpose(1, 2)
        q, k, v = normed.split(heads, dim=1)
        keys, values = self.keys[:batch], self.values[:batch]
        keys[:, :, -1:], values[:, :, -1:] = k, v
        mixed = scaled_dot_product_attention(q, keys, values, enable_gqa=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, 1, width))
        h = rms_norm(x, (width,))
        y: Tensor = x + self.down(silu(self.gate(h)) * self.up(h))
        return y


def llama(
    layers: int, width: int = 4096, hidden: int = 14336, key_heads: int = 8, batch: int = 32, length: int = 1024
) -> nn.Module:
    """Random weights, the same in every run; by default layers of Llama-3-8B."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(*(DecoderLayer(width, hidden, key_heads, batch, length) for _ in range(layers))).eval()
