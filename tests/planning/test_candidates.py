"""What is timed, what is left out by bytes and multiplications, and that both are said."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from stand_ins import AddKernel
from torch import Tensor

from ajour.detect import detect
from ajour.ops import BITMAP_LINEAR, BLOCK_LINEAR, NM_LINEAR
from ajour.planning.candidates import Form, candidates, elements, estimated_bytes, forms, parse_formats
from ajour.terms.errors import PlanError
from ajour.terms.pattern import NM, Block, Dense, Pattern, Unstructured


def _blocks(side: int, live: float, n: int = 256, k: int = 256) -> Tensor:
    mask = torch.rand(n // side, k // side) < live
    return torch.randn(n, k) * mask.repeat_interleave(side, 0).repeat_interleave(side, 1)


def _two_of_four(n: int = 128, k: int = 128) -> Tensor:
    kept = torch.rand(n, k // 4, 4).topk(2, -1).indices
    return torch.randn(n, k) * torch.zeros(n, k // 4, 4).scatter(-1, kept, 1).view(n, k)


def _patterns(w: Tensor, formats: Sequence[Pattern] | None = None) -> list[Pattern]:
    return [form.pattern for form in forms(detect(w), formats)[0]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_each_zero_pattern_is_stored_as_what_it_is(dtype: torch.dtype) -> None:
    assert _patterns(_blocks(32, 0.1).to(dtype))[0] == Block(32, 32)
    assert _patterns(_two_of_four().to(dtype)) == [NM(2, 4)]
    assert _patterns((torch.randn(128, 128) * (torch.rand(128, 128) < 0.1)).to(dtype)) == [Unstructured()]
    assert _patterns(torch.randn(64, 64).to(dtype)) == []


def test_a_bigger_block_size_that_the_kernels_like_is_tried_too() -> None:
    mask = (torch.rand(8, 8) < 0.3).repeat_interleave(32, 0).repeat_interleave(32, 1)
    mask[:16, :16] = True  # half of a 32x32 block here and there: 16x16 fits best
    mask[32:48, 64:80] = True
    tried = _patterns(torch.randn(256, 256) * mask)
    assert {Block(16, 16), Block(32, 32)} <= set(tried)


def test_training_tries_no_blocks_that_hold_more_zeros_than_they_must() -> None:
    mask = (torch.rand(8, 8) < 0.3).repeat_interleave(32, 0).repeat_interleave(32, 1)
    mask[:16, :16], mask[16:32, :32] = True, False
    found = detect(torch.randn(256, 256) * mask)
    for device in ("cpu", "cuda"):
        assert Form(Block(32, 32)) in forms(found, device=device)[0]
        kept, refused = forms(found, device=device, trainable=True)
        assert Form(Block(16, 16)) in kept
        assert Form(Block(32, 32)) not in kept
        bring = "training in block 32x32 would bring back what block 16x16 leaves out; it was not tried"
        assert bring in refused
    assert {Form(Block(64, 64)), Form(Block(32, 32))} <= set(
        forms(detect(_blocks(64, 0.2, 512, 512)), trainable=True)[0]
    )


def test_the_size_that_kernels_like_is_tried_within_a_bigger_one() -> None:
    assert {Block(64, 64), Block(32, 32)} <= set(_patterns(_blocks(64, 0.2, 512, 512)))


def _tried_on_gpu(w: Tensor) -> list[Pattern]:
    return [form.pattern for form in forms(detect(w), device="cuda")[0] if isinstance(form.pattern, Block)]


def test_on_a_gpu_blocks_are_tried_as_larger_ones_where_explicit_zeros_cost_less_than_small_tiles() -> None:
    mask = (torch.rand(16, 16) < 0.2).repeat_interleave(32, 0).repeat_interleave(32, 1)
    mask[:16, :16], mask[16:32, :16] = True, False  # one half of a 32x32 block here: 16x16 is the exact size
    mask[:32, 16:32] = False
    tried = _tried_on_gpu(torch.randn(512, 512) * mask)
    assert tried[0] == Block(16, 16)
    assert Block(32, 32) in tried
    scattered = _tried_on_gpu(_blocks(16, 0.1, 512, 512))
    assert scattered == [Block(16, 16)], "as 32x32 it would store over three times as much"
    assert _tried_on_gpu(_blocks(128, 0.3, 1024, 1024))[0] == Block(128, 128)


def test_on_a_gpu_small_blocks_are_tried_as_sizes_that_its_kernels_take() -> None:
    mask = (torch.rand(64, 64) < 0.2).repeat_interleave(8, 0).repeat_interleave(8, 1)
    mask &= (torch.rand(16, 16) < 0.2).repeat_interleave(32, 0).repeat_interleave(32, 1)
    mask |= (torch.rand(32, 32) < 0.15).repeat_interleave(16, 0).repeat_interleave(16, 1)
    tried = _tried_on_gpu(torch.randn(512, 512) * mask)
    assert any(block.rows >= 16 for block in tried)
    assert forms(detect(torch.randn(64, 64)), device="cuda")[0] == []


def test_a_kernel_that_is_there_for_training_is_not_timed(add_kernel: AddKernel) -> None:
    found = detect(_blocks(32, 0.1))
    add_kernel(BLOCK_LINEAR, "served")
    add_kernel(BLOCK_LINEAR, "trained", planned=False)
    timed, refused = candidates(Form(Block(32, 32)), found, (1, 64), "cpu", None, False)
    assert {candidate.kernel for candidate in timed} == {"served"}
    assert refused == []


def test_what_cannot_win_is_left_out_aloud() -> None:
    _, refused = forms(detect(_two_of_four()))
    assert any("unstructured needs no fewer bytes or multiplications than 2:4" in reason for reason in refused)
    _, refused = forms(detect(torch.randn(512, 512) * (torch.rand(512, 512) < 0.1)))
    assert any(reason.endswith("the elements of the leanest pattern; it was not tried") for reason in refused)


def test_a_weight_with_hardly_a_zero_is_not_tried_unless_at_any_price() -> None:
    w = torch.randn(64, 64)
    w[3, 5] = -0.0
    found = detect(w)
    kept, refused = forms(found)
    assert kept == []
    assert any("unstructured stores 100% of the weight, in no fewer bytes than dense" in reason for reason in refused)
    assert [form.pattern for form in forms(found, at_any_price=True)[0]] == [Unstructured()]


def _scattered(density: float, dtype: torch.dtype = torch.float32) -> Tensor:
    return (torch.randn(128, 128) * (torch.rand(128, 128) < density)).to(dtype)


def _split(w: Tensor, device: str = "cpu", formats: Sequence[Pattern] | None = None) -> bool:
    return Form(Unstructured(), split=True) in forms(detect(w), formats, device=device)[0]


def test_a_split_is_tried_where_its_bytes_and_values_let_it_win() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        assert _split(_scattered(0.5, dtype))
        assert _split(_scattered(0.3, dtype), formats=[Unstructured()])
        assert not _split(_scattered(0.1, dtype)), "the 2:4 part alone stores five times the non-zeros"
        assert not _split(_scattered(0.95, dtype)), "it needs no fewer bytes than dense"
    assert _split(_scattered(0.7))
    assert not _split(_scattered(0.7, torch.bfloat16))
    assert not _split(_scattered(0.5), device="cuda"), "no kernel of it runs there"
    assert not _split(_two_of_four(), formats=[Unstructured()]), "nothing would be left over"


def test_a_split_is_timed_for_a_few_rows_alone() -> None:
    form = Form(Unstructured(), split=True)
    (only,), refused = candidates(form, detect(_scattered(0.5)), (1, 2, 4, 32, 64, 512), "cpu", None, False)
    assert (form.op.name, only.kernel, only.rows, refused) == ("split_linear", "cpu", (4, 32), [])
    assert str(form) == "unstructured, split"


def test_forced_formats_are_tried_and_no_others() -> None:
    w = _two_of_four()
    assert _patterns(w, [Unstructured(), NM(4, 8), Dense()]) == [Unstructured(), NM(4, 8)]
    assert _patterns(w, []) == []


def test_formats_may_be_named() -> None:
    assert parse_formats(None) is None
    assert parse_formats("2:4") == (NM(2, 4),)
    assert parse_formats(Block(4, 4)) == (Block(4, 4),)
    assert parse_formats(["block 16x16", Unstructured()]) == (Block(16, 16), Unstructured())
    with pytest.raises(PlanError, match="formats: '2 of 4' is no pattern"):
        parse_formats(["2 of 4"])


@pytest.mark.parametrize(
    ("w", "pattern"),
    [(_blocks(32, 0.2), Block(32, 32)), (_two_of_four(), NM(2, 4)), (torch.randn(64, 72).relu(), Unstructured())],
    ids=str,
)
def test_estimates_agree_with_the_stored_matrix(w: Tensor, pattern: Pattern) -> None:
    matrix = Form(pattern).op.matrix.from_dense(w, pattern)
    found = detect(w)
    assert elements(found, pattern) == matrix.values.numel()
    assert 0.9 * matrix.nbytes <= estimated_bytes(found, pattern) <= matrix.nbytes


def test_every_op_of_a_pattern_is_known() -> None:
    assert Form(NM(1, 4)).op is NM_LINEAR
    assert Form(Block(8, 1)).op is BLOCK_LINEAR
    assert Form(Unstructured()).op is BITMAP_LINEAR


def test_kernels_and_configurations_are_asked_row_by_row(add_kernel: AddKernel) -> None:
    add_kernel(NM_LINEAR, "few", why_not=lambda p: None if p.m <= 8 else f"takes up to 8 rows, found {p.m}")
    add_kernel(NM_LINEAR, "all", configs=lambda p: ("a", "b") if p.m > 1 else ("a",))
    found, refused = candidates(Form(NM(2, 4)), detect(_two_of_four()), (1, 64), "cpu", None, False)
    assert {(c.kernel, c.config, c.rows) for c in found} == {
        ("few", "", (1,)),
        ("all", "a", (1, 64)),
        ("all", "b", (64,)),
    }
    assert refused == ["2:4, few: takes up to 8 rows, found 64"]


def test_the_reference_stands_in_only_when_asked_and_alone(add_kernel: AddKernel) -> None:
    found = detect(_two_of_four())
    assert candidates(Form(NM(2, 4)), found, (1, 64), "cpu", None, False)[0] == []
    (only,) = candidates(Form(NM(2, 4)), found, (1, 64), "cpu", None, True)[0]
    assert (only.kernel, only.rows) == ("reference", (1, 64))
    add_kernel(NM_LINEAR, "few", why_not=lambda p: None if p.m <= 8 else "too many rows")
    mixed, _ = candidates(Form(NM(2, 4)), found, (1, 64), "cpu", None, True)
    assert {(c.kernel, c.rows) for c in mixed} == {("few", (1,)), ("reference", (64,))}
