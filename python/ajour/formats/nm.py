"""NMMatrix: the kept values of an N:M pattern and their positions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ajour._native import native
from ajour.formats.matrix import Sizes, SparseMatrix
from ajour.memory import packable, packer, view
from ajour.terms.pattern import NM, Pattern


def position_bits(group: int) -> int:
    """Bits of one position within a group."""
    return (group - 1).bit_length()


class NMMatrix(SparseMatrix):
    """values: [n, groups * keep], positions: uint8 [n, ceil(groups * keep * bits / 8)] with groups = ceil(k / group).

    Position e of a row (kept value e // keep's group, in rising order within it) stands at bits e * bits and up, least
    significant first: for 2:4 one nibble for each group, low two bits the first kept position, high two the second. A
    group with fewer non-zeros keeps its smallest free positions beside them, with the value +0.0. A last group that
    overhangs k counts as padded with zeros; bits after a row's last position are zero.
    """

    NAMES = ("values", "positions")
    HOLDS = NM

    @classmethod
    def from_dense(cls, w: Tensor, pattern: Pattern) -> NMMatrix:
        cls._check_weight(w, pattern)
        device, w = w.device, packable(w)
        n, k = w.shape
        layout = _layout(pattern)
        values = w.new_empty(n, layout.kept(k))
        positions = w.new_empty(n, layout.position_bytes(k), dtype=torch.uint8)
        if w.is_cuda:
            refused = w.new_empty(1, dtype=torch.int32)
            addresses = values.data_ptr(), positions.data_ptr(), refused.data_ptr()
            packer("pack_nm", w)(layout, view(w), *addresses)
            if int(refused):
                return cls.from_dense(w.cpu(), pattern)  # which says where
        else:
            native.pack_nm(layout, view(w), values.data_ptr(), positions.data_ptr())
        return cls({"values": values.to(device), "positions": positions.to(device)}, pattern, (n, k))._trusted()

    def positions(self) -> Tensor:
        """The unpacked positions, int64 [n, groups, keep]."""
        assert isinstance(self.pattern, NM)
        keep, group = self.pattern.keep, self.pattern.group
        bits = position_bits(group)
        n, kept = self.values.shape
        stream = (self._tensors["positions"].unsqueeze(-1) >> torch.arange(8, device=self.device)) & 1
        stream = stream.view(n, -1)[:, : kept * bits].reshape(n, kept, bits).long()
        return (stream << torch.arange(bits, device=self.device)).sum(-1).view(n, kept // keep, keep)

    def to_dense(self) -> Tensor:
        values, positions = self._packable().values()
        w = values.new_empty(self.shape)
        packer("unpack_nm", w)(_layout(self.pattern), values.data_ptr(), positions.data_ptr(), view(w))
        return w.to(self.device)

    def validate(self) -> None:
        values, positions = self._on_host().values()
        size = native.WeightView(0, *self.shape, values.element_size())
        native.check_nm(_layout(self.pattern), values.data_ptr(), positions.data_ptr(), size)

    @classmethod
    def _sizes(cls, tensors: Mapping[str, Tensor], pattern: Pattern, shape: tuple[int, int]) -> Sizes:
        n, k = shape
        layout = _layout(pattern)
        return {"values": (None, (n, layout.kept(k))), "positions": (torch.uint8, (n, layout.position_bytes(k)))}


def _layout(pattern: Pattern) -> Any:
    assert isinstance(pattern, NM)
    return native.NMLayout(pattern.keep, pattern.group)
