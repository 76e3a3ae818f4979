"""Calls that really happen are counted, by op and by the kernel that served them."""

from __future__ import annotations

import torch

from ajour.nn import linear_of
from ajour.ops.calls import count_calls
from ajour.terms.pattern import NM, Unstructured
from pruned import keep_mask, matrix_of


def test_calls_are_counted_where_they_happen() -> None:
    w = torch.where(keep_mask(NM(2, 4), 8, 12), torch.randn(8, 12), 0.0)
    mixed = linear_of(matrix_of(w, NM(2, 4)), choices=[(2, "reference", ""), (None, "aten", "")])
    bitmap = linear_of(matrix_of(w, Unstructured()), choices=[(None, "reference", "")])
    mixed(torch.randn(1, 12))
    with count_calls() as calls:
        mixed(torch.randn(2, 12))
        mixed(torch.randn(3, 1, 12, requires_grad=True)).sum().backward()
        mixed(torch.randn(0, 12))
        bitmap(torch.randn(12))
        with torch.autocast("cpu", torch.bfloat16):
            bitmap(torch.randn(2, 12))
        torch.nn.functional.linear(torch.randn(2, 12), mixed.weight)
    mixed(torch.randn(1, 12))
    assert calls.ops == {"nm_linear": 3, "bitmap_linear": 2}
    assert calls.kernels == {
        ("nm_linear", "reference"): 1,
        ("nm_linear", "aten"): 1,
        ("bitmap_linear", "reference"): 2,
    }


def test_counts_may_be_nested() -> None:
    w = torch.where(keep_mask(NM(2, 4), 8, 12), torch.randn(8, 12), 0.0)
    module = linear_of(matrix_of(w, NM(2, 4)))
    with count_calls() as outer:
        module(torch.randn(1, 12))
        with count_calls() as inner:
            module(torch.randn(1, 12))
    assert (outer.ops["nm_linear"], inner.ops["nm_linear"]) == (2, 1)
