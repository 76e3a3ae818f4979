"""A kernel of a product that is wrong or fails is found and named."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from ajour.diagnosis.products import check_products
from ajour.ops import BLOCK_SDDMM, NM_LINEAR


def test_a_wrong_kernel_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = NM_LINEAR.kernels["reference"]
    wrong = replace(kernel, run=lambda *args: kernel.run(*args) * 1.01)
    monkeypatch.setitem(NM_LINEAR.kernels, "reference", wrong)
    (broken,) = (finding for finding in check_products("cpu") if finding.status == "broken")
    assert broken.subject == "nm_linear · reference (cpu)"
    assert broken.found.startswith("wrong at 2:4, float32, 1 rows: ")
    assert broken.remedy


def test_a_kernel_that_fails_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> torch.Tensor:
        raise RuntimeError("no such instruction\nand more")

    monkeypatch.setitem(NM_LINEAR.kernels, "reference", replace(NM_LINEAR.kernels["reference"], run=fail))
    (broken,) = (finding for finding in check_products("cpu") if finding.status == "broken")
    assert broken.found == "failed at 2:4, float32, 1 rows: no such instruction"


def test_a_wrong_gradient_at_the_live_blocks_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = BLOCK_SDDMM.kernels["reference"]

    def wrong(gradient: torch.Tensor, *args: object) -> None:
        kernel.run(gradient, *args)
        gradient.mul_(1.01)

    monkeypatch.setitem(BLOCK_SDDMM.kernels, "reference", replace(kernel, run=wrong))
    (broken,) = (finding for finding in check_products("cpu") if finding.status == "broken")
    assert broken.subject == "block_sddmm · reference (cpu)"
    assert broken.found.startswith("wrong at block 32x32, float32, 1 rows: ")
