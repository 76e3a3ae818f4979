"""NMMatrix: the kept values of an N:M pattern and their positions."""

from __future__ import annotations

import torch
from torch import Tensor

from ajour.formats.matrix import DTYPES, SparseMatrix
from ajour.terms.errors import FormatError, PatternError
from ajour.terms.pattern import NM, Pattern


def position_bits(group: int) -> int:
    """Bits of one position within a group."""
    return (group - 1).bit_length()


class NMMatrix(SparseMatrix):
    """values: [n, groups * keep], positions: uint8 [n, ceil(groups * keep * bits / 8)] with groups = ceil(k / group).

    Position e of a row (kept value e // keep's group, in rising order within it) stands at bits e * bits and up, least
    significant first: for 2:4 one nibble for each group, low two bits the first kept position, high two the second. A
    group with fewer non-zeros keeps its smallest free positions beside them, with the value +0.0. A last group that
    overhangs k counts as padded with zeros.
    """

    NAMES = ("values", "positions")

    @classmethod
    def from_dense(cls, w: Tensor, pattern: Pattern) -> NMMatrix:
        if not isinstance(pattern, NM) or w.dim() != 2 or w.dtype not in DTYPES:
            raise PatternError(f"NMMatrix holds a 2-D weight in an N:M pattern, found {tuple(w.shape)} {w.dtype} as {pattern}")
        n, k = w.shape
        groups = -(-k // pattern.group)
        padded = torch.nn.functional.pad(w, (0, groups * pattern.group - k)).view(n, groups, pattern.group)
        live = padded != 0
        count = live.sum(-1)
        if count.numel() and int(count.max()) > pattern.keep:
            row, group = (int(i) for i in (count > pattern.keep).nonzero()[0])
            raise PatternError(
                f"row {row}, columns {group * pattern.group} to {min(k, (group + 1) * pattern.group) - 1}: {pattern} allows "
                f"{pattern.keep} non-zeros, found {int(count[row, group])}"
            )
        place = torch.arange(pattern.group, device=w.device)
        order = torch.where(live, place, place + pattern.group)
        positions = order.topk(pattern.keep, largest=False).values.remainder(pattern.group).sort(-1).values
        values = padded.gather(-1, positions)
        values = torch.where(values == 0, torch.zeros_like(values), values)
        return cls(
            {"values": values.reshape(n, groups * pattern.keep), "positions": _pack(positions.reshape(n, -1), pattern)},
            pattern,
            (n, k),
        )

    def positions(self) -> Tensor:
        """The unpacked positions, int64 [n, groups, keep]."""
        assert isinstance(self.pattern, NM)
        keep, group = self.pattern.keep, self.pattern.group
        bits = position_bits(group)
        n, kept = self.values.shape
        stream = (self._tensors["positions"].unsqueeze(-1) >> torch.arange(8, device=self.device)) & 1
        stream = stream.view(n, -1)[:, : kept * bits].reshape(n, kept, bits).long()
        return (stream << torch.arange(bits, device=self.device)).sum(-1).view(n, -1, keep)

    def to_dense(self) -> Tensor:
        assert isinstance(self.pattern, NM)
        n, k = self.shape
        groups = -(-k // self.pattern.group)
        dense = self.values.new_zeros(n, groups, self.pattern.group)
        dense.scatter_(-1, self.positions(), self.values.view(n, groups, self.pattern.keep))
        return dense.view(n, -1)[:, :k].contiguous()

    def validate(self) -> None:
        if not isinstance(self.pattern, NM):
            raise FormatError(f"NMMatrix needs an N:M pattern, found {self.pattern}")
        n, k = self.shape
        kept = -(-k // self.pattern.group) * self.pattern.keep
        width = -(-kept * position_bits(self.pattern.group) // 8)
        for name, shape in (("values", (n, kept)), ("positions", (n, width))):
            if tuple(self._tensors[name].shape) != shape:
                raise FormatError(f"{name}: expected shape {shape}, found {tuple(self._tensors[name].shape)}")
        positions = self.positions()
        bad = positions >= self.pattern.group
        bad[..., 1:] |= positions[..., 1:] <= positions[..., :-1]
        if bool(bad.any()):
            row, group = (int(i) for i in bad.any(-1).nonzero()[0])
            raise FormatError(f"positions: row {row}, group {group} holds {positions[row, group].tolist()}, no legal {self.pattern} code")


def _pack(positions: Tensor, pattern: NM) -> Tensor:
    bits = position_bits(pattern.group)
    n, kept = positions.shape
    stream = (positions.unsqueeze(-1) >> torch.arange(bits, device=positions.device)) & 1
    stream = stream.view(n, kept * bits)
    stream = torch.nn.functional.pad(stream, (0, -kept * bits % 8)).view(n, -1, 8)
    return (stream << torch.arange(8, device=positions.device)).sum(-1).to(torch.uint8)
