"""A linear layer's three products through the live blocks of a dense weight alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from ajour.formats.block import BlockMatrix
from ajour.nn.selection import canonical_choice
from ajour.ops import BLOCK_LINEAR
from ajour.ops.gradients import linear
from ajour.ops.prepare import prepare
from ajour.terms.pattern import Block


class BlockProducts:
    """Which blocks of a weight [n, k] live, and the kernels that multiply by these alone.

    live: bool [n / rows, k / cols], of blocks as in `pattern`. bits: what it was made of. Serves one dtype and device.
    """

    def __init__(self, live: Tensor, pattern: Block, w: Tensor, bits: Tensor) -> None:
        self.pattern, self.shape, self.dtype, self.device = pattern, (w.shape[0], w.shape[1]), w.dtype, w.device
        self.bits, self.version, self.made_of = bits, version(bits), bits.clone()
        kept = live.to(w.device, w.dtype).repeat_interleave(pattern.rows, 0).repeat_interleave(pattern.cols, 1)
        matrix = BlockMatrix.from_dense(kept[: w.shape[0], : w.shape[1]].contiguous(), pattern)
        packed, self.kernels = prepare(BLOCK_LINEAR, matrix, canonical_choice(BLOCK_LINEAR, matrix))
        self.index = packed[1:]
        tensors = matrix.tensors()
        self.places = tensors["rows"].long(), tensors["columns"].long()

    def serves(self, w: Tensor, bits: Tensor) -> bool:
        """Whether this was made for such a weight and for these bits as they are now."""
        if self.bits is not bits or self.version != version(bits):
            if not torch.equal(self.made_of, bits):
                return False
            self.bits, self.version = bits, version(bits)  # the same ones again, as DDP sends them before a forward
        return self.dtype is w.dtype and self.device == w.device

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """x: [..., k] @ weight.T + bias; its gradient for the weight is +0.0 outside the live blocks."""
        blocks: Tensor = _Take.apply(weight, self)  # type: ignore[no-untyped-call]
        return linear(BLOCK_LINEAR, x, [blocks, *self.index], bias, self.kernels)

    def take(self, w: Tensor) -> Tensor:
        """The live blocks: [live, rows, cols] of w: [n, k]."""
        r, c, (n, k) = self.pattern.rows, self.pattern.cols, self.shape
        tiles = pad(w, (0, -k % c, 0, -n % r)).view(-(-n // r), r, -(-k // c), c)
        return tiles[self.places[0], :, self.places[1]]

    def place(self, blocks: Tensor) -> Tensor:
        """w: [n, k] with these live blocks, +0.0 elsewhere."""
        r, c, (n, k) = self.pattern.rows, self.pattern.cols, self.shape
        tiles = blocks.new_zeros(-(-n // r), r, -(-k // c), c)
        tiles[self.places[0], :, self.places[1]] = blocks
        return tiles.view(tiles.shape[0] * r, tiles.shape[2] * c)[:n, :k]


class _Take(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, w: Tensor, products: BlockProducts) -> Tensor:  # type: ignore[override]
        ctx.products = products
        return products.take(w)

    @staticmethod
    def backward(ctx: Any, dblocks: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        dw: Tensor = _Place.apply(dblocks, ctx.products)  # type: ignore[no-untyped-call]
        return dw, None


class _Place(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, blocks: Tensor, products: BlockProducts) -> Tensor:  # type: ignore[override]
        ctx.products = products
        return products.place(blocks)

    @staticmethod
    def backward(ctx: Any, dw: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        blocks: Tensor = _Take.apply(dw, ctx.products)  # type: ignore[no-untyped-call]
        return blocks, None


def version(t: Tensor) -> int:
    """How often a tensor was written to; tensors of inference mode don't count."""
    return 0 if t.is_inference() else t._version
