"""The dense control of the benchmarks on a GPU: right, or it would flatter what is measured beside it."""

from __future__ import annotations

import pytest
import torch
from benchmarks.control import control_of

from pruned import bits, truth


@pytest.mark.parametrize("m", [1, 3, 8, 13, 16, 31, 33, 64])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_the_control_is_within_the_error_rule_and_repeats_itself(dtype: torch.dtype, m: int) -> None:
    for n, k in ((64, 256), (1, 1), (65, 33), (1000, 1000), (4096, 512), (130, 5000)):
        w, x = torch.randn(n, k).to(dtype), torch.randn(m, k).to(dtype)
        expected = truth(x, w, None, None, "none")
        sides = control_of([w.cuda()]).sides(x.cuda())
        assert sides
        for side in sides:
            first, again = side.calls[0](), side.calls[0]()
            assert isinstance(first, torch.Tensor)
            assert isinstance(again, torch.Tensor)
            expected.check(first.cpu(), f"{side.name} {n}x{k} m={m} {dtype}")
            assert torch.equal(bits(first), bits(again)), f"{side.name}: two runs differ"


def test_a_small_problem_for_the_sanitizer() -> None:
    w, x = torch.randn(130, 300).bfloat16(), torch.randn(9, 300).bfloat16()
    for side in control_of([w.cuda()]).sides(x.cuda()):
        y = side.calls[0]()
        assert isinstance(y, torch.Tensor)
        truth(x, w, None, None, "none").check(y.cpu(), side.name)
