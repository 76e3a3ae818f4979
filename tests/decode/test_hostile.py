"""What a decode kernel packs is checked when a matrix is loaded, or when it is packed: nothing hostile is launched."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ajour.formats import BitmapMatrix, NMMatrix
from ajour.ops import BITMAP_LINEAR, NM_LINEAR
from ajour.ops.nm_linear import slabs
from ajour.terms.errors import FormatError
from ajour.terms.pattern import NM, Unstructured
from pruned import keep_mask

SHAPE = (70, 300)
BITMAP = {
    "offsets beyond the values": ("offsets", (-1,), 2**31 - 1, "offsets: the last entry is 2147483647, but"),
    "offsets before them": ("offsets", (3,), -5, "offsets: entry 3 is -5, but"),
    "offsets that fall": ("offsets", (2,), 0, "offsets: entry 2 is 0, but"),
    "bits without values": ("bitmaps", (1, 4), -1, r"offsets: entry \d+ is \d+, but \d+ bits precede it"),
    "bits beyond k": ("bitmaps", (0, 37), -1, "bitmaps: tile row 0, column 37 has a bit set outside the 70x300"),
    "bits beyond n": ("bitmaps", (8, 0), -1, "bitmaps: tile row 8, column 0 has a bit set outside the 70x300"),
}
TWO_FOUR = {
    "one place twice": (0x55, r"positions: row 3, group 2 holds \[1, 1\], no legal 2:4 code"),
    "places that fall": (0x11, r"positions: row 3, group 2 holds \[1, 0\], no legal 2:4 code"),
    "no places": (0x00, r"positions: row 3, group 2 holds \[0, 0\], no legal 2:4 code"),
    "the last place twice": (0xFF, r"positions: row 3, group 2 holds \[3, 3\], no legal 2:4 code"),
}


def bitmap(damage: str) -> tuple[dict[str, Tensor], str]:
    """Canonical tensors with one number that is wrong, and what must be said of it."""
    name, place, value, said = BITMAP[damage]
    w = torch.where(keep_mask(Unstructured(), *SHAPE, 0.2), torch.randn(SHAPE), 0.0).bfloat16()
    tensors = {key: t.clone() for key, t in BitmapMatrix.from_dense(w).tensors().items()}
    tensors[name][place] = value
    return tensors, said


def packed(name: str) -> Callable[[BitmapMatrix], object]:
    return lambda matrix: BITMAP_LINEAR.kernel(name).prepack(matrix, "")


@pytest.mark.parametrize("damage", BITMAP)
@pytest.mark.parametrize("kernel", ["cuda_decode", "cuda_gaps"])
def test_bitmaps_and_offsets_are_refused_by_place_before_they_are_packed(kernel: str, damage: str) -> None:
    tensors, said = bitmap(damage)
    with pytest.raises(FormatError, match=said):
        BitmapMatrix.from_tensors(tensors, Unstructured(), SHAPE)
    with pytest.raises(FormatError, match=said):
        packed(kernel)(BitmapMatrix(tensors, Unstructured(), SHAPE))


@pytest.mark.parametrize("damage", TWO_FOUR)
def test_codes_that_the_tensor_cores_do_not_know_are_refused_by_place(damage: str) -> None:
    byte, said = TWO_FOUR[damage]
    w = torch.where(keep_mask(NM(2, 4), *SHAPE, 0.5), torch.randn(SHAPE), 0.0).bfloat16()
    tensors = NMMatrix.from_dense(w, NM(2, 4)).tensors()
    tensors["positions"][3, 1] = byte
    with pytest.raises(FormatError, match=said):
        NMMatrix.from_tensors(tensors, NM(2, 4), SHAPE)


@pytest.mark.parametrize("pattern", [NM(keep, group) for group in (4, 8, 16, 32) for keep in (1, group - 1)], ids=str)
def test_whatever_positions_say_slabs_hold_places_of_their_group_alone(pattern: NM) -> None:
    """A place is read by as many bits as its group has places: nothing that is packed can point outside."""
    torch.manual_seed(1)
    w = torch.where(keep_mask(pattern, *SHAPE, 0.5), torch.randn(SHAPE), 0.0).bfloat16()
    tensors = NMMatrix.from_dense(w, pattern).tensors()
    tensors["positions"] = torch.randint(0, 256, tensors["positions"].shape, dtype=torch.uint8)
    matrix = NMMatrix(tensors, pattern, SHAPE)
    back = slabs.unpack(NM_LINEAR.kernel("cuda_decode").prepack(matrix, ""), pattern, SHAPE)
    assert torch.equal(back.positions(), matrix.positions())
    assert 0 <= int(back.positions().min()) <= int(back.positions().max()) < pattern.group
