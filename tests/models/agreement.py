"""A converted model against its masked dense twin, op calls counted."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ajour.conversion import convert, revert
from ajour.planning.plan import Plan
from ajour.terms.pattern import NM, Block, Pattern, Unstructured
from forced import REFERENCE, Kernels, counting, plan_for, pruned

PATTERNS = (NM(2, 4), Block(8, 8), Unstructured())
OP = {NM: "nm_linear", Block: "block_linear", Unstructured: "bitmap_linear"}
Run = Callable[[Any], Tensor]


def outputs(model: nn.Module, run: Run) -> Tensor:
    with torch.no_grad():
        return run(model)


def check(
    model: nn.Module,
    pattern: Pattern,
    run: Run,
    calls: int,
    *,
    kernels: Kernels = REFERENCE,
    plan: Plan | None = None,
    atol: float = 2e-5,
) -> nn.Module:
    """Prunes, converts, compares, counts, reverts, compares again; returns the model, converted once more."""
    pruned(model, pattern)
    dense, wanted = copy.deepcopy(model), outputs(model, run)
    assert wanted.isfinite().all()
    plan = plan_for(model, pattern, kernels) if plan is None else plan
    convert(model, plan)
    with counting(**{OP[type(pattern)]: calls}):
        y = outputs(model, run)
    torch.testing.assert_close(y, wanted, atol=atol, rtol=1e-4)
    revert(model)
    with counting():
        assert torch.equal(outputs(model, run), wanted)
    reverted, before = dict(model.named_parameters()), dict(dense.named_parameters())
    assert list(reverted) == list(before)
    assert all(torch.equal(reverted[name], p) for name, p in before.items())
    assert [type(module) for module in model.modules()] == [type(module) for module in dense.modules()]
    return convert(model, plan)
