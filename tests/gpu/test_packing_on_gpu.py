"""Weights packed on a GPU: the bits of the host, from dense to canonical to what the kernels read, and back."""

from __future__ import annotations

import pytest
import torch
from products import drawn

from ajour.formats import BitmapMatrix, NMMatrix, SparseMatrix
from ajour.ops import BITMAP_LINEAR
from ajour.terms.errors import PatternError
from ajour.terms.pattern import NM, Pattern, Unstructured
from pruned import bits, matrix_of

SIZES = ((1, 1), (65, 300), (192, 320), (40, 9000))
DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
PATTERNS: tuple[Pattern, ...] = (*(NM(*p) for p in ((2, 4), (1, 4), (3, 5), (2, 16), (9, 32))), Unstructured())


def assert_same(found: SparseMatrix, expected: SparseMatrix) -> None:
    for name, tensor in expected.tensors().items():
        assert torch.equal(bits(found.tensors()[name].cpu()), bits(tensor)), name


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_dense_weights_become_what_they_become_on_the_host(pattern: Pattern, dtype: torch.dtype) -> None:
    for turn, (n, k) in enumerate(SIZES):
        w = drawn(pattern, n, k, dtype, (0.1, 0.5)[turn % 2])
        if len(kept := w.nonzero()):
            w[tuple(kept[0])] = float("nan")
        w[w == 0] = -0.0
        made = matrix_of(w.cuda(), pattern)
        assert made.device.type == "cuda"
        assert_same(made, matrix_of(w, pattern))
        back = made.to_dense()
        assert back.is_cuda
        assert torch.equal(bits(back.cpu()), bits(matrix_of(w, pattern).to_dense()))
        turned = w.t().contiguous().cuda().t()  # the same weight, in columns
        assert_same(matrix_of(turned, pattern), matrix_of(w, pattern))


@pytest.mark.parametrize("pattern", [NM(2, 4), NM(3, 5)], ids=str)
def test_a_small_weight_that_does_not_fit_is_refused_by_its_place(pattern: NM) -> None:
    w = drawn(pattern, 70, 300, torch.bfloat16)
    first, last = 20 * pattern.group, 21 * pattern.group - 1
    w[33, first : last + 1] = 1.0
    said = f"row 33, columns {first} to {last}: {pattern} allows {pattern.keep} non-zeros, found {pattern.group}"
    for device in ("cpu", "cuda"):
        with pytest.raises(PatternError, match=said):
            NMMatrix.from_dense(w.to(device), pattern)


@pytest.mark.parametrize("kernel", ["cuda_decode", "cuda_gaps"])
@pytest.mark.parametrize("density", [0.0, 0.01, 0.2, 1.0])
def test_small_bitmaps_are_packed_as_on_the_host_and_unpacked_where_they_lie(kernel: str, density: float) -> None:
    record = BITMAP_LINEAR.kernel(kernel)
    for n, k in SIZES:
        w = drawn(Unstructured(), n, k, torch.bfloat16, density)
        on_host = BitmapMatrix.from_dense(w)
        packed = record.prepack(BitmapMatrix.from_dense(w.cuda()), "")
        for ours, expected in zip(packed, record.prepack(on_host, ""), strict=True):
            assert ours.is_cuda
            assert torch.equal(bits(ours.cpu()), bits(expected))
        back = record.unpack(packed, Unstructured(), (n, k))
        assert back.device.type == "cuda"
        assert_same(back, on_host)
