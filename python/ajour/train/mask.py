"""Mask: which entries of one parameter may be other than zero, at one bit each."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ajour._native import native
from ajour.ops.masked_update.rows import DTYPES, rows
from ajour.ops.masked_update.update import Slice
from ajour.terms.errors import PatternError


class Mask:
    """bits: uint8 [ceil(numel / 8)], row-major, the first entry of a byte in its lowest bit; 1 is kept, 0 held at zero.

    Bits beyond the last entry are zero. A mask never changes; `shape` is that of the parameter it is for.
    """

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, bits: Tensor, shape: Sequence[int]) -> None:
        """Raises PatternError if `bits` are no uint8 [ceil(numel / 8)], or one beyond the last entry is set."""
        self.bits, self.shape = bits.detach().contiguous(), torch.Size(shape)
        self.numel = math.prod(shape)
        expected = -(-self.numel // 8)
        if bits.dtype != torch.uint8 or bits.shape != (expected,):
            raise PatternError(
                f"the bits of a mask of {tuple(shape)}: expected uint8 ({expected},), "
                f"found {bits.dtype} {tuple(bits.shape)}"
            )
        if self.numel % 8 and int(bits[-1]) >> self.numel % 8:
            raise PatternError(f"the bits of a mask of {tuple(shape)}: a bit beyond the last entry is set")
        self._kept: int | None = None

    @classmethod
    def from_dense(cls, kept: Tensor) -> Mask:
        """kept: any shape, bool, or zeros and ones of any dtype; PatternError for other values."""
        if kept.dtype != torch.bool:
            if not bool(((kept == 0) | (kept == 1)).all()):
                raise PatternError("a mask holds zeros and ones alone (1 is kept); found other values")
            kept = kept != 0
        flat = kept.detach().reshape(-1).view(torch.uint8)
        flat = torch.nn.functional.pad(flat, (0, -flat.numel() % 8)).view(-1, 8)
        bits = flat[:, 0].clone()
        for place in range(1, 8):
            bits |= flat[:, place] << place
        return cls(bits, kept.shape)

    def dense(self) -> Tensor:
        """bool of `shape`, True where an entry is kept."""
        flat = torch.stack([(self.bits >> place) & 1 for place in range(8)], dim=1)
        return flat.view(-1)[: self.numel].view(torch.bool).view(self.shape)

    @property
    def kept(self) -> int:
        """How many entries may be other than zero."""
        if self._kept is None:
            pairs = self.bits - ((self.bits >> 1) & 0x55)  # the bits of a byte, added in twos, fours and eights
            fours = (pairs & 0x33) + ((pairs >> 2) & 0x33)
            self._kept = int(((fours + (fours >> 4)) & 0x0F).sum())
        return self._kept

    @property
    def density(self) -> float:
        """The kept share, 0 to 1; 1 for a parameter without entries."""
        return self.kept / self.numel if self.numel else 1.0

    @property
    def device(self) -> torch.device:
        """Where the bits are."""
        return self.bits.device

    def to(self, device: torch.device | str) -> Mask:
        """The same mask on another device."""
        return self if self.bits.device == torch.device(device) else Mask(self.bits.to(device), self.shape)

    def apply_(self, weight: Tensor) -> None:
        """Sets the entries of `weight` (of `shape`) that are not kept to +0.0, whatever they were."""
        if (
            weight.device.type == self.device.type == "cpu"
            and weight.dtype in DTYPES
            and weight.shape == self.shape
            and weight.is_contiguous()
        ):
            flat = weight.detach().view(-1)
            table = rows([Slice(flat, self.bits, None, (), None)], [flat])
            native.masked_clear(table.data_ptr(), 1, flat.element_size())
            torch.autograd.graph.increment_version(weight)
        else:
            with torch.no_grad():
                weight.masked_fill_(~self.dense().to(weight.device), 0.0)

    def __or__(self, other: Mask) -> Mask:
        return Mask(self.bits | self._alike(other).bits, self.shape)

    def __and__(self, other: Mask) -> Mask:
        return Mask(self.bits & self._alike(other).bits, self.shape)

    def __xor__(self, other: Mask) -> Mask:
        return Mask(self.bits ^ self._alike(other).bits, self.shape)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Mask):
            return NotImplemented
        return self.shape == other.shape and torch.equal(self.bits, other.bits.to(self.device))

    def __repr__(self) -> str:
        return f"Mask({tuple(self.shape)}, density={self.density:.3f})"

    def _alike(self, other: Mask) -> Mask:
        if self.shape != other.shape:
            raise PatternError(f"masks of different shapes don't combine: {tuple(self.shape)}, {tuple(other.shape)}")
        return other.to(self.device)
