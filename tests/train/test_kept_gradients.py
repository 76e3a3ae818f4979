"""Norms and clipping count kept entries alone, in every dtype, and go with a GradScaler."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from ajour._native import native
from ajour.terms.errors import KernelError, PatternError
from ajour.terms.pattern import Unstructured
from ajour.train import Mask, MaskedAdamW, Masks, clip_grad_norm_, mask_gradients_
from masked import assert_held, small

NAMES = ("portable", "avx2", "avx512", "avx512bf16")
LEVELS = NAMES[: NAMES.index(native.best_cpu_isa()) + 1]


@pytest.fixture(params=LEVELS)
def level(request: pytest.FixtureRequest) -> Iterator[str]:
    native.set_cpu_isa(request.param)
    yield request.param
    native.set_cpu_isa(native.best_cpu_isa())


def poisoned(dtype: torch.dtype) -> tuple[nn.Module, Masks, dict[str, Tensor]]:
    """A model whose gradients are NaN, Inf and large where the masks don't keep, and what counts of each."""
    model = nn.Sequential(nn.Linear(71, 83), nn.Linear(83, 9)).to(dtype)
    masks = Masks.from_pattern(model, Unstructured(), 0.3)
    counted = {}
    for name, p in model.named_parameters():
        p.grad = torch.randn_like(p)
        kept = masks[name].dense() if name in masks else torch.ones_like(p, dtype=torch.bool)
        counted[name] = torch.where(kept, p.grad, 0.0).double()
        other = torch.tensor([torch.nan, torch.inf, 1e4], dtype=dtype)[torch.arange(p.numel()) % 3].view_as(p)
        p.grad = torch.where(kept, p.grad, other)
    return model, masks, counted


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("norm_type", [2.0, 1.0, torch.inf, 3.0])
def test_the_norm_is_that_of_kept_entries(level: str, norm_type: float, dtype: torch.dtype) -> None:
    model, masks, counted = poisoned(dtype)
    wanted = torch.linalg.vector_norm(torch.cat([g.flatten() for g in counted.values()]), norm_type)
    found = clip_grad_norm_(model.named_parameters(), masks, 0.5, norm_type)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-6, atol=0)
    mask_gradients_(model.parameters(), masks)
    for name, p in model.named_parameters():
        tolerance = torch.finfo(dtype).eps
        torch.testing.assert_close(
            p.grad.double(), counted[name] * (0.5 / (wanted + 1e-6)), rtol=2 * tolerance, atol=1e-7
        )
        assert not p.grad[counted[name] == 0].view(torch.uint8).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_what_is_kept_stays_bit_for_bit_and_the_rest_is_plus_zero(level: str, dtype: torch.dtype) -> None:
    of_bits = torch.int32 if dtype == torch.float32 else torch.int16
    for size in (1, 7, 63, 64, 65, 4096, 4171):
        any_bits = torch.randint(-(2**15), 2**15, (size,)).to(of_bits)  # NaN with payloads, subnormals, -0.0
        kept = torch.rand(size) < 0.4
        kept[128:300], kept[300:600] = False, True
        gradient = any_bits.clone().view(dtype)
        Mask.from_dense(kept).apply_(gradient)
        assert torch.equal(gradient.view(of_bits), torch.where(kept, any_bits, 0)), size


def test_small_gradients_stay_bit_for_bit() -> None:
    model, masks, _ = poisoned(torch.float32)
    before = [p.grad.clone() for p in model.parameters()]
    clip_grad_norm_(model.parameters(), masks, 1e6)
    for p, g in zip(model.parameters(), before, strict=True):
        assert torch.equal(p.grad.view(torch.int32), g.view(torch.int32))


def test_a_nan_in_a_kept_entry_shows() -> None:
    for norm_type in (2.0, 1.0, torch.inf):
        model, masks, _ = poisoned(torch.float32)
        model[0].bias.grad[3] = torch.nan
        with pytest.raises(RuntimeError, match="the norm of the gradients is nan"):
            clip_grad_norm_(model.parameters(), masks, 1.0, norm_type, error_if_nonfinite=True)
        assert clip_grad_norm_(model.parameters(), masks, 1.0, norm_type).isnan()


def test_many_small_gradients_add_up() -> None:
    """One addition after another in float32 would lose the last half of them."""
    weight = nn.Parameter(torch.zeros(1 << 21))
    weight.grad = torch.full_like(weight, 1e-3)
    weight.grad[0] = 100.0
    norm = clip_grad_norm_([weight], {}, 1e9)
    assert norm.item() == pytest.approx((1e4 + ((1 << 21) - 1) * 1e-6) ** 0.5, rel=1e-7)


def test_nothing_to_clip_has_norm_zero() -> None:
    model, masks = small()
    assert clip_grad_norm_(model.parameters(), masks, 1.0) == 0.0
    mask_gradients_(model.parameters(), masks)


@pytest.mark.parametrize("norm_type", [0.0, -1.0, -torch.inf, torch.nan])
def test_a_norm_that_is_none_is_refused(norm_type: float) -> None:
    model, masks, _ = poisoned(torch.float32)
    with pytest.raises(KernelError, match=r"norm_type=.*: expected a number above 0, or inf"):
        clip_grad_norm_(model.named_parameters(), masks, 1.0, norm_type)


def test_torchs_own_arguments_are_taken() -> None:
    model, masks, counted = poisoned(torch.float32)
    wanted = max(float(g.abs().max()) for g in counted.values())
    found = clip_grad_norm_(model.parameters(), masks, 1.0, "inf", error_if_nonfinite=True, foreach=True)
    assert float(found) == wanted


def test_masks_of_other_parameters_are_refused_by_name() -> None:
    model, masks = small()
    for function in (lambda p: clip_grad_norm_(p, masks, 1.0), lambda p: mask_gradients_(p, masks)):
        with pytest.raises(PatternError, match=r"'2.weight', which is not among these"):
            function(model[0].parameters())


def test_a_scaler_takes_no_notice_of_what_is_masked_out() -> None:
    """Without mask_gradients_ the scaler would skip every step, as it looks at all of a gradient."""
    for held_back in (False, True):
        model, masks = small()
        optimizer = MaskedAdamW(model.parameters(), masks)
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
        before = model[0].weight.detach().clone()
        scaler.scale(model(torch.randn(5, 37)).square().mean()).backward()
        model[0].weight.grad[~masks["0.weight"].dense()] = torch.inf
        if held_back:
            mask_gradients_(model.parameters(), masks)
        scaler.unscale_(optimizer)
        norm = clip_grad_norm_(model.parameters(), masks, 1.0)
        scaler.step(optimizer)
        scaler.update()
        assert norm.isfinite()
        assert scaler.get_scale() == (8.0 if held_back else 4.0)
        assert torch.equal(before, model[0].weight) != held_back
        assert_held(model, masks)
