"""Weights are pruned as their case says, and layers go by the names of models."""

from __future__ import annotations

import pytest
import torch
from benchmarks.cases import Case, cases, pruned, tiny_cases
from benchmarks.shapes import CPU_SHAPES, GPU_SHAPES, SHAPES, SMOKE, TINY, named

from ajour.detect import detect
from ajour.terms.pattern import NM, Block, Pattern, Unstructured


@pytest.mark.parametrize("case", [*cases(), *cases("cuda"), *tiny_cases("cuda")], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_have_the_zeros_that_their_case_names(case: Case, dtype: torch.dtype) -> None:
    size = (2048, 2048) if isinstance(case.pattern, Block) and case.pattern.rows > 32 else (512, 512)
    w = pruned(size, case, dtype)
    found = detect(w)
    assert found.pattern == case.pattern
    assert found.density == pytest.approx(case.density, rel=0.25)
    assert torch.equal(w, pruned(size, case, dtype)), "every run measures the same weights"


def test_what_gains_least_on_a_cpu_is_measured_too() -> None:
    rows = {(each.pattern, each.density): each.rows for each in cases() if each.mask == "random"}
    for least in ((NM(2, 4), 0.5), (NM(1, 4), 0.25), (Unstructured(), 0.5)):
        assert rows[least] == (1, 4, 8, 32, 128, 512)
    assert rows[Unstructured(), 0.7] == (1, 8, 128)


@pytest.mark.parametrize("pattern", [Block(32, 32), Block(4, 1), Unstructured()])
def test_skewed_masks_have_rows_of_very_different_density(pattern: Pattern) -> None:
    even, skewed = (
        (pruned((2048, 2048), Case(pattern, 0.1, mask, (1,)), torch.float32) != 0).view(64, -1).float().mean(1)
        for mask in ("random", "skewed")
    )
    height = pattern.rows if isinstance(pattern, Block) else 1
    assert skewed.std() > (2 if height == 32 else 1.2) * even.std()
    assert skewed.mean() == pytest.approx(0.1, rel=0.15)


def test_balanced_masks_have_as_many_blocks_in_every_row() -> None:
    w = pruned((512, 1024), Case(Block(64, 64), 0.25, "balanced", (1,)), torch.float32)
    assert (w.view(8, 64, 16, 64).count_nonzero((1, 3)) > 0).sum(1).tolist() == [4] * 8


def test_every_target_shape_is_a_multiple_of_what_its_patterns_need() -> None:
    assert all(n % 32 == 0 and k % 32 == 0 for n, k in [*SHAPES.values(), *SMOKE.values(), *TINY.values()])


def test_shapes_go_by_the_names_of_models() -> None:
    assert set(named("Llama-3-8B, vit-h up", "cpu")) == {
        "Llama-3-8B qkv", "Llama-3-8B out", "Llama-3-8B up", "Llama-3-8B down", "ViT-H up",
    }  # fmt: skip
    assert named("", "cpu") == {**TINY, **CPU_SHAPES}
    assert named("", "cuda") == {**TINY, **GPU_SHAPES}
    with pytest.raises(ValueError, match="no shape is called like 'gpt-9'; there are MiniLM up, "):
        named("MiniLM,gpt-9", "cpu")
