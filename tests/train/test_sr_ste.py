"""SR-STE: the mask of every forward, the gradient of the paper, and a whole training run against a slow loop."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ajour.detect import detect
from ajour.terms.errors import PatternError
from ajour.terms.pattern import NM, Unstructured
from ajour.train.finish import finish
from ajour.train.sr_ste import SrSte, sr_ste
from pruned import bits


def slow_mask(w: Tensor, keep: int, group: int) -> Tensor:
    """Entry by entry, with Python's own sort."""
    mask = torch.zeros_like(w)
    for row in range(w.shape[0]):
        for start in range(0, w.shape[1], group):
            places = range(start, min(start + group, w.shape[1]))
            for place in sorted(places, key=lambda i: (-abs(float(w.detach()[row, i])), i))[:keep]:
                mask[row, place] = 1
    return mask


@pytest.mark.parametrize("pattern", [NM(2, 4), NM(1, 4), NM(3, 5)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_forward_masks_and_backward_adds_the_refining_term(pattern: NM, dtype: torch.dtype) -> None:
    w = torch.randn(6, 22).to(dtype).requires_grad_()
    mask = slow_mask(w, pattern.keep, pattern.group)
    dy = torch.randn(6, 22).to(dtype)
    masked = sr_ste(w, pattern, 0.3)
    masked.backward(dy)
    assert torch.equal(masked, w * mask)
    assert not bits(masked.detach())[mask == 0].any(), "-0.0 outside the mask"
    assert torch.equal(w.grad, dy + 0.3 * ((1 - mask) * w.detach()))


def test_training_equals_the_paper_s_loop() -> None:
    x, y = torch.randn(64, 12), torch.randn(64, 8)
    model = nn.Linear(12, 8)
    reference = copy.deepcopy(model)
    w, b = reference.weight.detach().clone(), reference.bias.detach().clone()
    parametrize.register_parametrization(model, "weight", SrSte(NM(2, 4), 2e-3))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    masks = []
    for _ in range(40):
        optimizer.zero_grad()
        (model(x) - y).square().mean().backward()
        optimizer.step()

        mask = slow_mask(w, 2, 4)
        masks.append(mask)
        error = 2 * (x @ (w * mask).T + b - y) / y.numel()
        w, b = w - 0.1 * (error.T @ x + 2e-3 * (1 - mask) * w), b - 0.1 * error.sum(0)
    assert any(not torch.equal(mask, masks[0]) for mask in masks), "the mask never moved; this tests nothing"
    assert torch.allclose(model.parametrizations.weight.original, w, rtol=1e-4, atol=1e-6)
    assert torch.allclose(model.weight, w * slow_mask(w, 2, 4), rtol=1e-4, atol=1e-6)


def test_finish_leaves_the_zeros_of_the_last_forward() -> None:
    model = nn.Sequential(nn.Linear(16, 8))
    parametrize.register_parametrization(model[0], "weight", SrSte(NM(2, 4)))
    used = model[0].weight.detach().clone()
    assert finish(model) is model
    assert type(model[0]) is nn.Linear
    assert isinstance(model[0].weight, nn.Parameter)
    assert torch.equal(bits(model[0].weight.detach()), bits(used))
    assert detect(model[0].weight.detach()).pattern == NM(2, 4)


def test_other_patterns_and_shapes_are_refused() -> None:
    with pytest.raises(PatternError, match="SrSte chooses N:M masks; found unstructured"):
        SrSte(Unstructured())
    with pytest.raises(PatternError, match=r"a weight \[n, k\] and an N:M pattern; found \(3, 4, 5\) and 2:4"):
        sr_ste(torch.randn(3, 4, 5), NM(2, 4))
