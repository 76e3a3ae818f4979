"""SplitMatrix: any zeros, as a 2:4 part and a scattered rest."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.functional import pad

from ajour.formats.bitmap import BitmapMatrix
from ajour.formats.matrix import Sizes, SparseMatrix
from ajour.formats.nm import NMMatrix
from ajour.terms.errors import FormatError
from ajour.terms.pattern import NM, Pattern, Unstructured

PAIRS = NM(keep=2, group=4)


class SplitMatrix(SparseMatrix):
    """The first two non-zeros of every group of four in a row as 2:4, the others as a bitmap: a sum of two, and exact.

    values: [n * 2 * groups + rest], those of the 2:4 part row after row (an NMMatrix' values), then the rest's tile by
    tile (a BitmapMatrix' values), with groups = ceil(k / 4). positions: uint8, as an NMMatrix has them; bitmaps: int64
    and offsets: int32, as a BitmapMatrix. A place of the rest lies behind both places that its group keeps.
    """

    NAMES = ("values", "positions", "bitmaps", "offsets")
    HOLDS = Unstructured

    @classmethod
    def from_dense(cls, w: Tensor, pattern: Pattern = Unstructured()) -> SplitMatrix:  # noqa: B008
        cls._check_weight(w, pattern)
        w = w.detach()
        n, k = w.shape
        live = pad(w != 0, (0, -k % 4)).view(n, -(-k // 4), 4)
        first = (live & (live.cumsum(-1, dtype=torch.int8) <= 2)).flatten(1)[:, :k]
        pairs, rest = (torch.where(part, w, 0) for part in (first, ~first))
        return cls.of(NMMatrix.from_dense(pairs, PAIRS), BitmapMatrix.from_dense(rest))

    @classmethod
    def of(cls, pairs: NMMatrix, rest: BitmapMatrix) -> SplitMatrix:
        """The sum of two matrices that share no place."""
        values = torch.cat((pairs.values.flatten(), rest.values))
        indices = {"positions": pairs.tensors()["positions"], **rest.tensors()}
        return cls({**indices, "values": values}, Unstructured(), pairs.shape)._trusted()

    def pairs(self) -> NMMatrix:
        """The 2:4 part; it shares memory with this matrix."""
        n, k = self.shape
        kept = -(-k // 4) * 2
        tensors = {"values": self.values[: n * kept].view(n, kept), "positions": self._tensors["positions"]}
        return NMMatrix(tensors, PAIRS, self.shape)

    def rest(self) -> BitmapMatrix:
        """What the 2:4 part has no room for; it shares memory with this matrix."""
        n, k = self.shape
        tensors = {**self._tensors, "values": self.values[n * -(-k // 4) * 2 :]}
        return BitmapMatrix(tensors, Unstructured(), self.shape)

    def to_dense(self) -> Tensor:
        self._check_sizes(self._tensors, self.pattern, self.shape)
        rest = self.rest().to_dense()
        return torch.where(rest != 0, rest, self.pairs().to_dense())

    def validate(self) -> None:
        self._check_sizes(self._tensors, self.pattern, self.shape)
        pairs, rest = self.pairs(), self.rest()
        pairs.validate()
        rest.validate()
        overlap = _live(rest) & (torch.arange(4, device=self.device) <= _second(pairs).unsqueeze(-1))
        if bool(overlap.any()):
            row, group, place = overlap.nonzero()[0].tolist()
            raise FormatError(
                f"bitmaps: row {row}, column {4 * group + place} is set, but the 2:4 part keeps it or a later place of "
                "its group"
            )

    @classmethod
    def _sizes(cls, tensors: Mapping[str, Tensor], pattern: Pattern, shape: tuple[int, int]) -> Sizes:
        n, k = shape
        values = tensors["values"]
        pairs = n * -(-k // 4) * 2
        held = max(pairs, values.shape[0] if values.dim() else 0)
        parts = NMMatrix._sizes(tensors, PAIRS, shape), BitmapMatrix._sizes(tensors, pattern, shape)
        return {**parts[0], **parts[1], "values": (None, (held,))}


def _live(rest: BitmapMatrix) -> Tensor:
    """bool [n, groups, 4]: where a value of the rest stands."""
    ones = torch.ones(rest.values.shape, dtype=torch.float16, device=rest.device)
    live = BitmapMatrix({**rest.tensors(), "values": ones}, rest.pattern, rest.shape).to_dense() != 0
    return pad(live, (0, -rest.shape[1] % 4)).view(rest.shape[0], -(-rest.shape[1] // 4), 4)


def _second(pairs: NMMatrix) -> Tensor:
    """uint8 [n, groups]: the second place that each group keeps."""
    codes = pairs.tensors()["positions"]
    nibbles = torch.stack((codes & 15, codes >> 4), -1).flatten(1)
    return nibbles[:, : -(-pairs.shape[1] // 4)] >> 2
