"""What every format promises alike."""

from __future__ import annotations

import pytest
import torch
from values import assert_exact

from ajour.formats import BitmapMatrix, BlockMatrix, DenseMatrix, NMMatrix, SparseMatrix, SplitMatrix
from ajour.terms.errors import FormatError, PatternError
from ajour.terms.pattern import NM, Block, Dense, Pattern, Unstructured
from pruned import keep_mask, matrix_of

FORMATS: dict[type[SparseMatrix], Pattern] = {
    NMMatrix: NM(2, 4),
    BlockMatrix: Block(4, 8),
    BitmapMatrix: Unstructured(),
    SplitMatrix: Unstructured(),
    DenseMatrix: Dense(),
}


def weight(pattern: Pattern) -> torch.Tensor:
    return torch.randn(18, 20) * keep_mask(pattern, 18, 20)


@pytest.mark.parametrize("kind", FORMATS, ids=lambda kind: kind.__name__)
def test_a_matrix_knows_its_size_and_prints_it(kind: type[SparseMatrix]) -> None:
    w = weight(FORMATS[kind])
    matrix = kind.from_dense(w, FORMATS[kind])
    density = int((w != 0).sum()) / w.numel()
    assert (matrix.shape, matrix.dtype, matrix.device, matrix.pattern) == ((18, 20), w.dtype, w.device, FORMATS[kind])
    assert matrix.density == density
    assert matrix.values is next(iter(matrix.tensors().values()))
    assert tuple(matrix.tensors()) == kind.NAMES
    assert matrix.nbytes == sum(t.numel() * t.element_size() for t in matrix.tensors().values())
    assert repr(matrix) == f"{kind.__name__}(18x20, {FORMATS[kind]}, float32, density {density:.3f}, cpu)"


def test_stored_bytes_are_those_of_the_description() -> None:
    w = torch.randn(64, 128).bfloat16()
    assert matrix_of(w * keep_mask(NM(2, 4), 64, 128), NM(2, 4)).nbytes == 64 * 128 // 2 * 2 + 64 * 128 // 8
    assert matrix_of(w * keep_mask(NM(2, 8), 64, 128), NM(2, 8)).nbytes == 64 * 128 // 4 * 2 + 64 * 32 * 3 // 8
    blocks = matrix_of(torch.block_diag(w[:32, :32], w[32:, :96]), Block(32, 32))
    assert blocks.nbytes == 4 * (32 * 32 * 2 + 3 * 4) + (3 + 5) * 4
    assert matrix_of(w, Unstructured()).nbytes == 64 * 128 * 2 + 64 * 128 // 8 + (8 * 2 + 1) * 4


@pytest.mark.parametrize("kind", FORMATS, ids=lambda kind: kind.__name__)
def test_a_matrix_moves_to_another_dtype_by_rounding_its_values(kind: type[SparseMatrix]) -> None:
    w = weight(FORMATS[kind])
    half = kind.from_dense(w, FORMATS[kind]).to(dtype=torch.bfloat16)
    half.validate()
    assert_exact(half.to_dense(), w.bfloat16())
    assert_exact(half.to("cpu").to_dense(), w.bfloat16())


@pytest.mark.parametrize("kind", FORMATS, ids=lambda kind: kind.__name__)
def test_every_format_refuses_what_lacks_a_tensor_or_has_a_foreign_pattern(kind: type[SparseMatrix]) -> None:
    matrix = kind.from_dense(weight(FORMATS[kind]), FORMATS[kind])
    for name in kind.NAMES:
        tensors = matrix.tensors()
        del tensors[name]
        with pytest.raises(FormatError, match=f"{kind.__name__} needs the tensors .*; {name} is missing"):
            kind.from_tensors(tensors, matrix.pattern, matrix.shape)
    for pattern in FORMATS.values():
        if pattern != FORMATS[kind]:
            with pytest.raises(FormatError, match=rf"{kind.__name__} needs .*, found {pattern}"):
                kind.from_tensors(matrix.tensors(), pattern, matrix.shape)
            with pytest.raises(PatternError, match=rf"{kind.__name__} holds .*, found .* as {pattern}"):
                kind.from_dense(torch.ones(4, 4), pattern)
    with pytest.raises(FormatError, match="expected shape"):
        kind.from_tensors(matrix.tensors(), matrix.pattern, (180, 20))


def test_a_dense_matrix_keeps_every_bit() -> None:
    w = torch.tensor([[-0.0, torch.nan], [torch.inf, 0.0]])
    matrix = DenseMatrix.from_dense(w)
    assert torch.equal(matrix.to_dense().view(torch.int32), w.view(torch.int32))
    assert matrix.to_dense().data_ptr() != w.data_ptr()
