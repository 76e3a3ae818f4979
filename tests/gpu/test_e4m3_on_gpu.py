"""scaled_nm_linear on a GPU: rows of x rounded as the op says, products within the rule, the same bits every time."""

from __future__ import annotations

import pytest
import torch
from products import twice
from torch import Tensor

from ajour._native import native
from ajour.formats import ScaledNMMatrix
from ajour.formats.e4m3 import round_rows, rounded, row_scales
from ajour.ops import SCALED_NM_LINEAR
from ajour.ops.functional import problem_of
from ajour.ops.prepare import prepare, restore
from ajour.ops.scaled_nm_linear import sm90_kernel
from ajour.terms.pattern import NM
from ajour.terms.problem import ACTIVATIONS
from pruned import bits, keep_mask, truth

SHAPES = ((64, 256), (8, 32), (1000, 992), (4096, 512), (136, 5024), (33, 31))


def quantized(n: int, k: int, dtype: torch.dtype) -> ScaledNMMatrix:
    w = torch.where(keep_mask(NM(2, 4), n, k), torch.randn(n, k) * torch.randn(n, 1).exp(), 0.0)
    return ScaledNMMatrix.quantize(w.to(dtype))


def awkward(m: int, k: int, dtype: torch.dtype) -> Tensor:
    """Rows of very different size, of zeros, with outliers, with Inf and NaN."""
    x = torch.randn(m, k) * torch.randn(m, 1).mul(3).exp().clamp(max=1e3)
    x[::5] = 0
    x[:, ::7] *= 30
    x = x.to(dtype)
    x[1, 0], x[2 % m, k - 1] = float("nan"), float("inf")
    return x


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_rows_are_rounded_bit_for_bit_as_in_plain_torch(dtype: torch.dtype) -> None:
    for m, k in ((3, 1), (70, 100), (33, 4096), (5, 20000)):
        x = awkward(m, k + 3, dtype)[:, 1 : k + 1]
        x[1, 0], x[2, k - 1] = float("nan"), float("inf")
        scales = row_scales(x)
        found, found_scales = sm90_kernel.round_rows(x.cuda())
        live = ~scales.isnan()
        assert not live[1], "a row with NaN has no scale"
        assert torch.equal(found_scales.cpu().isnan(), ~live)
        assert torch.equal(found_scales.cpu()[live], scales[live].float())
        wanted = round_rows(x, scales).view(torch.uint8)
        assert torch.equal(found.cpu()[:, :k].view(torch.uint8)[live], wanted[live])
        assert (found.cpu()[:, k:].view(torch.uint8) == 0).all()


def test_small_rows_are_rounded_as_in_plain_torch() -> None:
    """For the sanitizers too."""
    for m, k in ((3, 1), (5, 100)):
        x = torch.randn(m, k + 3).bfloat16()[:, 1 : k + 1]
        scales = row_scales(x)
        found, found_scales = sm90_kernel.round_rows(x.cuda())
        assert torch.equal(found_scales.cpu(), scales.float())
        assert torch.equal(found.cpu()[:, :k].view(torch.uint8), round_rows(x, scales).view(torch.uint8))
        assert (found.cpu()[:, k:].view(torch.uint8) == 0).all()


@pytest.mark.parametrize("mode", ["stream", "tiles"])
def test_small_products_on_hopper_are_within_the_error_rule(mode: str) -> None:
    """For the sanitizers too; an odd and an even number of 128 columns, which tiles of 256 take in pairs."""
    for n, k in ((8, 32), (136, 288), (64, 512)):
        matrix, x = quantized(n, k, torch.bfloat16), torch.randn(70, k).bfloat16()
        if reason := sm90_kernel.KERNEL.why_not(problem_of(matrix.to("cuda"), 70)):
            pytest.skip(f"cuda_sm90 does not run here: {reason}")
        config = f"{native.sm90_configs['e4m3'][0]} {mode} w1"
        packed, table = prepare(SCALED_NM_LINEAR, matrix.to("cuda"), [(None, "cuda_sm90", config)])
        y = SCALED_NM_LINEAR.call(x.cuda(), packed, None, table, "none")
        truth(rounded(x), matrix.to_dense(), None, None, "none").check(y.cpu(), f"{mode} {n}x{k}")


@pytest.mark.parametrize("m", [1, 7, 64, 129, 1000, 4096])
@pytest.mark.parametrize("kernel", ["cuda_sm90", "triton", "reference"])
def test_every_kernel_is_within_the_error_rule_and_repeats_itself(kernel: str, m: int) -> None:
    ran = 0
    for turn, (n, k) in enumerate(SHAPES):
        dtype, activation = (
            (torch.bfloat16, torch.float16)[turn % 2 == 1 and kernel != "cuda_sm90"],
            ACTIVATIONS[turn % 5],
        )
        matrix, x = quantized(n, k, dtype), torch.randn(m, k).to(dtype)
        problem = problem_of(matrix.to("cuda"), m, activation)
        if SCALED_NM_LINEAR.kernel(kernel).why_not(problem):
            continue
        ran += 1
        bias = torch.randn(n).to(dtype) if turn % 2 else None
        residual = torch.randn(m, n).to(dtype) if turn % 3 else None
        expected = truth(rounded(x), matrix.to_dense(), bias, residual, activation)
        for config in SCALED_NM_LINEAR.kernel(kernel).configs(problem):
            packed, table = prepare(SCALED_NM_LINEAR, matrix.to("cuda"), [(None, kernel, config)])
            expected.check(twice(SCALED_NM_LINEAR, x, packed, table, bias, activation, residual), f"{table} m={m}")
            back = restore(SCALED_NM_LINEAR, packed, table)
            assert torch.equal(bits(back.to_dense().cpu()), bits(matrix.to_dense()))
    assert ran or kernel == "cuda_sm90", "nothing ran"


@pytest.mark.parametrize("kernel", ["cuda_sm90", "triton"])
def test_a_row_with_inf_or_nan_gives_nan_and_spoils_no_other(kernel: str) -> None:
    matrix = quantized(64, 256, torch.bfloat16).to("cuda")
    if reason := SCALED_NM_LINEAR.kernel(kernel).why_not(problem_of(matrix, 70)):
        pytest.skip(f"{kernel} does not run here: {reason}")
    packed, table = prepare(SCALED_NM_LINEAR, matrix, [(None, kernel, "")])
    x = torch.randn(70, 256, device="cuda").bfloat16()
    clean = SCALED_NM_LINEAR.call(x, packed, None, table, "none")
    x[3, 5], x[69, 0] = float("nan"), float("inf")
    y = SCALED_NM_LINEAR.call(x, packed, None, table, "none")
    spoilt = torch.zeros(70, dtype=torch.bool, device="cuda")
    spoilt[[3, 69]] = True
    assert y[spoilt].isnan().all()
    assert torch.equal(bits(y[~spoilt]), bits(clean[~spoilt]))
