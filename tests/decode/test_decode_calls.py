"""What a call of a decode kernel does on the host: hands addresses over; nothing is built anew or waited for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from ajour._native import native
from ajour.formats import BitmapMatrix, NMMatrix, SparseMatrix
from ajour.ops import BITMAP_LINEAR, NM_LINEAR, decode
from ajour.ops.bitmap_linear import decode_kernel as bitmap_decode_kernel
from ajour.ops.bitmap_linear import gap_kernel
from ajour.ops.library import LinearOp
from ajour.ops.nm_linear import decode_kernel
from ajour.ops.prepare import prepare
from ajour.terms.errors import KernelError
from ajour.terms.pattern import NM
from ajour.terms.row_table import parse_row_table
from pruned import keep_mask

DEVICE = -1  # what a tensor on the CPU says


class Product:
    """A compiled product that only remembers how it was called."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def __call__(self, *arguments: Any) -> None:
        self.calls.append(arguments)


REMEMBERED = (decode.limits_of, decode.shape_of, decode_kernel._launch, gap_kernel._launch, bitmap_decode_kernel._shape)


@pytest.fixture
def product(monkeypatch: pytest.MonkeyPatch) -> Iterator[Product]:
    """Stands in for every compiled product, on a device like an H100."""
    made = Product()
    for each in REMEMBERED:
        each.cache_clear()
    for name in ("nm_decode", "lanes_decode", "bitmap_decode", "gap_decode"):
        monkeypatch.setattr(native, name, made, raising=False)
    limits = native.DeviceLimits(132, 232448, 233472)
    monkeypatch.setattr(native, "device_limits", lambda device: limits, raising=False)
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda device: 77, raising=False)
    yield made
    for each in REMEMBERED:
        each.cache_clear()


def matrix(op: LinearOp) -> SparseMatrix:
    if op is NM_LINEAR:
        w = torch.where(keep_mask(NM(2, 4), 300, 700, 0.5, False), torch.randn(300, 700), 0.0)
        return NMMatrix.from_dense(w.bfloat16(), NM(2, 4))
    return BitmapMatrix.from_dense(torch.where(torch.rand(300, 700) < 0.1, torch.randn(300, 700), 0.0).bfloat16())


KERNELS = [
    (NM_LINEAR, "cuda_decode", "c2 s4"),
    (NM_LINEAR, "cuda_decode", "lanes c2 s4"),
    (BITMAP_LINEAR, "cuda_decode", "c2 s4"),
    (BITMAP_LINEAR, "cuda_gaps", "c3"),
]


@pytest.mark.parametrize(("op", "kernel", "config"), KERNELS, ids=[f"{op.name} {k} {c}" for op, k, c in KERNELS])
def test_a_call_hands_over_addresses_and_builds_nothing_anew(
    op: LinearOp, kernel: str, config: str, product: Product
) -> None:
    packed, table = prepare(op, matrix(op), [(None, kernel, config)])
    (entry,) = parse_row_table(table).entries
    x, bias, residual = torch.randn(3, 704).bfloat16()[:, :700], torch.randn(300).bfloat16(), torch.zeros(3, 300)
    run = op.kernel(kernel).run
    ys = [run(x, packed, bias, residual, "silu", entry) for _ in range(2)]
    first, again = product.calls
    at = first.index(x.data_ptr())
    head = [each for each in first[:at] if not isinstance(each, (int, tuple))]
    assert len(head) == 2, "the layout and the shape"
    assert all(a is b for a, b in zip(head, (e for e in again[:at] if not isinstance(e, (int, tuple))), strict=True))
    assert (packed[0].data_ptr(), packed[0].nbytes) in first[:at]
    assert first[at + 1 : at + 3] == (704, 3)
    assert first[at + 3 : at + 6] == (bias.data_ptr(), residual.data_ptr(), ys[0].data_ptr())
    assert first[at + 7 :] == (True, 4, DEVICE, 77)
    assert again[at + 5] == ys[1].data_ptr() != ys[0].data_ptr(), "y is fresh"


@pytest.mark.parametrize(("op", "kernel", "config"), KERNELS[1::2], ids=["lanes", "gaps"])
def test_more_rows_than_a_kernel_for_few_takes_come_in_pieces(
    op: LinearOp, kernel: str, config: str, product: Product
) -> None:
    packed, table = prepare(op, matrix(op), [(None, kernel, config)])
    (entry,) = parse_row_table(table).entries
    op.kernel(kernel).run(torch.randn(11, 700).bfloat16(), packed, None, None, "none", entry)
    rows = [call[-9] for call in product.calls]
    assert rows == [4, 4, 3]


@pytest.mark.parametrize(("shared", "pieces"), [(227, {16: [16], 17: [17], 64: [64]}), (99, {16: [16], 64: [16] * 4})])
def test_full_slabs_that_leave_room_for_16_rows_alone_take_more_in_pieces(
    product: Product, monkeypatch: pytest.MonkeyPatch, shared: int, pieces: dict[int, list[int]]
) -> None:
    """99 KiB of shared memory, as consumer cards have: the fullest slab and 64 rows of x are more than that."""
    limits = native.DeviceLimits(48, shared << 10, (shared + 1) << 10)
    monkeypatch.setattr(native, "device_limits", lambda device: limits, raising=False)
    full = BitmapMatrix.from_dense(torch.randn(300, 700).bfloat16())
    packed, table = prepare(BITMAP_LINEAR, full, [(None, "cuda_decode", "c2 s4")])
    (entry,) = parse_row_table(table).entries
    for m, expected in pieces.items():
        product.calls.clear()
        BITMAP_LINEAR.kernel("cuda_decode").run(torch.randn(m, 700).bfloat16(), packed, None, None, "none", entry)
        assert [call[-9] for call in product.calls] == expected


def test_slabs_that_do_not_fit_with_a_few_rows_either_are_still_refused(
    product: Product, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = native.DeviceLimits(48, 16 << 10, 17 << 10)
    monkeypatch.setattr(native, "device_limits", lambda device: limits, raising=False)
    full = BitmapMatrix.from_dense(torch.randn(300, 700).bfloat16())
    packed, table = prepare(BITMAP_LINEAR, full, [(None, "cuda_decode", "c2 s4")])
    (entry,) = parse_row_table(table).entries
    for m in (8, 64):
        with pytest.raises(KernelError, match="shared memory"):
            BITMAP_LINEAR.kernel("cuda_decode").run(torch.randn(m, 700).bfloat16(), packed, None, None, "none", entry)
    assert not product.calls
