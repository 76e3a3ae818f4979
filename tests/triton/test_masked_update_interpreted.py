"""masked_adamw and masked_sgd in Triton, run by its interpreter on the CPU, against float64."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from ajour.ops.masked_update import reference, triton_kernel
from updates import CASES, assert_alike, copied, update

pytestmark = [  # numpy under the interpreter
    pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.runtime.interpreter"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:triton.runtime.interpreter"),
]
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("case", CASES)
def test_triton_does_what_float64_does(case: str, dtype: torch.dtype) -> None:
    for compact, master, density in ((False, False, 0.3), (True, False, 0.3), (True, True, 0.05), (False, True, None)):
        made = update(case, dtype, compact=compact, master=master, density=density)
        mine, wanted = copied(made), copied(made)
        triton_kernel.run(mine)
        reference.run(wanted)
        assert_alike(mine, wanted, made)


def test_stochastic_rounding_has_the_same_bits_as_the_reference() -> None:
    made = update("adamw", torch.bfloat16, compact=True, stochastic=True)
    mine, wanted = copied(made), copied(made)
    triton_kernel.run(mine)
    reference.run(wanted)
    for a, b in zip(mine.slices, wanted.slices, strict=True):
        assert (a.weight == b.weight).float().mean() > 0.999 or len(a.weight) < 1000


def test_a_scale_divides_and_a_found_inf_leaves_everything_as_it_was() -> None:
    made = update("adamw")
    mine, wanted = copied(made), copied(made)
    triton_kernel.run(replace(mine, grad_scale=torch.tensor([4.0]), found_inf=torch.tensor([0.0])))
    reference.run(replace(wanted, grad_scale=torch.tensor([4.0])))
    assert_alike(mine, wanted, made)
    skipped = copied(made)
    triton_kernel.run(replace(skipped, found_inf=torch.tensor([1.0])))
    for a, b in zip(skipped.slices, made.slices, strict=True):
        assert torch.equal(a.weight, b.weight)
        assert all(torch.equal(s, t) for s, t in zip(a.states, b.states, strict=True))


def test_the_table_is_uploaded_only_when_something_moved() -> None:
    made = copied(update("adamw"))
    triton_kernel.run(made)
    (first,) = made.uploaded.values()
    triton_kernel.run(made)
    assert next(iter(made.uploaded.values())) is first
    moved = replace(copied(made), uploaded=made.uploaded)
    triton_kernel.run(moved)
    assert next(iter(made.uploaded.values())) is not first
