"""A call with packed tensors that are too small for its weight is refused before anything is launched."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from ajour._native import HAS_CUDA, native
from ajour.ops import BITMAP_LINEAR, NM_LINEAR, decode
from ajour.ops.bitmap_linear import decode_kernel as bitmap_decode_kernel
from ajour.ops.bitmap_linear import gap_kernel
from ajour.ops.library import LinearOp
from ajour.ops.nm_linear import decode_kernel, sm80_kernel
from ajour.ops.prepare import prepare
from ajour.terms.errors import KernelError
from ajour.terms.pattern import NM, Pattern, Unstructured
from ajour.terms.row_table import parse_row_table
from pruned import keep_mask, matrix_of

N, K = 300, 700
REMEMBERED = (
    decode.limits_of, decode.shape_of, decode_kernel._launch, sm80_kernel._launch, gap_kernel._launch,
    bitmap_decode_kernel._shape,
)  # fmt: skip
SLABS, SPANS, GROUPS = 5 * 11, 1, 75  # of 64x64; of gap rows
TWO_FOUR = (SLABS + 1) * 4608
ONE_FOUR = (5 * 6 + 1) * 4608  # of 64x128
CASES = [  # op, pattern, kernel, config, the tensor that is cut, its name in the refusal, the bytes that it must have
    (NM_LINEAR, NM(2, 4), "cuda_decode", "c2 s4", 0, "slabs", TWO_FOUR),
    (NM_LINEAR, NM(1, 4), "cuda_decode", "c2 s4", 0, "slabs", ONE_FOUR),
    (NM_LINEAR, NM(2, 4), "cuda_decode", "lanes c2 s4", 0, "slabs", TWO_FOUR),
    (NM_LINEAR, NM(2, 4), "cuda_sm80", "n128 m64 s4 c2", 0, "slabs", TWO_FOUR),
    (BITMAP_LINEAR, Unstructured(), "cuda_decode", "c2 s4", 0, "slabs", (SLABS + 1) * 512),
    (BITMAP_LINEAR, Unstructured(), "cuda_decode", "c2 s4", 1, "index", (SLABS + 2) * 4),
    (BITMAP_LINEAR, Unstructured(), "cuda_gaps", "c3", 0, "gap rows", SPANS * GROUPS * 64),
    (BITMAP_LINEAR, Unstructured(), "cuda_gaps", "c3", 1, "index", (SPANS * GROUPS + 1) * 4),
    (BITMAP_LINEAR, Unstructured(), "cuda_gaps", "c3", 2, "order", GROUPS * 4 * 4),
]


@pytest.fixture(autouse=True)
def on_an_h100(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The compiled products themselves; only what they would be told of a device stands in."""
    if not HAS_CUDA:
        pytest.skip("ajour was built without CUDA: no size was refused")
    for each in REMEMBERED:
        each.cache_clear()
    monkeypatch.setattr(native, "device_limits", lambda device: native.DeviceLimits(132, 232448, 233472))
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda device: 0, raising=False)
    yield
    for each in REMEMBERED:
        each.cache_clear()


@pytest.mark.parametrize(("op", "pattern", "kernel", "config", "cut", "name", "needed"), CASES, ids=str)
def test_too_few_bytes_are_refused_by_text(
    op: LinearOp, pattern: Pattern, kernel: str, config: str, cut: int, name: str, needed: int
) -> None:
    w = torch.where(keep_mask(pattern, N, K, 0.1, False), torch.randn(N, K), 0.0).bfloat16()
    packed, table = prepare(op, matrix_of(w, pattern), [(None, kernel, config)])
    (entry,) = parse_row_table(table).entries
    size = packed[cut].element_size()
    packed[cut] = packed[cut][: needed // size - 1]
    with pytest.raises(KernelError, match=f"the {name} of this weight take {needed} bytes, found {needed - size}"):
        op.kernel(kernel).run(torch.randn(3, K).bfloat16(), packed, None, None, "none", entry)


def test_packed_tensors_that_are_not_contiguous_are_refused() -> None:
    w = torch.where(keep_mask(NM(2, 4), N, K, 0.5, False), torch.randn(N, K), 0.0).bfloat16()
    packed, table = prepare(NM_LINEAR, matrix_of(w, NM(2, 4)), [(None, "cuda_decode", "")])
    (entry,) = parse_row_table(table).entries
    wide = packed[0][:1].expand(packed[0].numel())
    with pytest.raises(KernelError, match=r"packed tensors are contiguous, found \(129024,\) with strides \(0,\)"):
        NM_LINEAR.kernel("cuda_decode").run(torch.randn(3, K).bfloat16(), [wide], None, None, "none", entry)
