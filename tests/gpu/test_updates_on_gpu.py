"""Masked optimizers on a GPU: every kernel against float64, and the same bits every time."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
import torch
from torch import Tensor

from ajour.ops.masked_update import reference
from ajour.ops.masked_update.op import MASKED_ADAMW
from ajour.ops.masked_update.update import Update
from updates import CASES, assert_alike, copied, update

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def moved(given: Update, device: str) -> Update:
    """The same update on another device."""

    def there(t: Tensor | None) -> Tensor | None:
        return None if t is None else t.to(device)

    slices = [
        replace(
            piece,
            weight=piece.weight.to(device),
            grad=piece.grad.to(device),
            bits=there(piece.bits),
            offsets=there(piece.offsets),
            states=tuple(state.to(device) for state in piece.states),
            master=there(piece.master),
        )
        for piece in given.slices
    ]
    return replace(given, slices=slices)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("case", CASES)
def test_every_kernel_does_what_float64_does_in_small(case: str, dtype: torch.dtype) -> None:
    kernels = [k for k in MASKED_ADAMW.kernels.values() if k.name != "reference" and k.why_not("cuda", dtype) is None]
    assert kernels
    for compact, master, density in product((False, True), (False, True), (0.05, 0.5, None)):
        made = update(case, dtype, compact=compact, master=master, density=density)
        wanted = copied(made)
        reference.run(wanted)
        for kernel in kernels:
            found = []
            for _ in range(2):
                mine = moved(made, "cuda")
                kernel.run(mine)
                found.append(moved(mine, "cpu"))
                assert_alike(found[-1], wanted, made)
            for a, b in zip(found[0].slices, found[1].slices, strict=True):
                assert torch.equal(a.weight.view(torch.uint8), b.weight.view(torch.uint8)), f"{kernel.name} differs"
