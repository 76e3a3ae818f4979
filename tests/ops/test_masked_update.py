"""masked_adamw and masked_sgd in C++ on every instruction set, against float64 and against what they promise."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ajour._native import native
from ajour.ops.masked_update import native_kernel, reference
from ajour.ops.masked_update.op import MASKED_ADAMW
from ajour.ops.masked_update.update import chunk_offsets
from ajour.terms.errors import KernelError
from ajour.train import Mask
from updates import CASES, assert_alike, copied, update

NAMES = ("portable", "avx2", "avx512", "avx512bf16")
LEVELS = NAMES[: NAMES.index(native.best_cpu_isa()) + 1]
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.fixture(params=LEVELS)
def level(request: pytest.FixtureRequest) -> Iterator[str]:
    native.set_cpu_isa(request.param)
    yield request.param
    native.set_cpu_isa(native.best_cpu_isa())


@pytest.fixture
def best_level() -> Iterator[None]:
    yield
    native.set_cpu_isa(native.best_cpu_isa())


@pytest.mark.usefixtures("best_level")
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("case", CASES)
def test_every_level_does_what_float64_does(case: str, dtype: torch.dtype) -> None:
    for compact, master, density in product((False, True), (False, True), (0.05, 0.5, None)):
        made = update(case, dtype, compact=compact, master=master, density=density)
        wanted = copied(made)
        reference.run(wanted)
        for level in LEVELS:
            native.set_cpu_isa(level)
            mine = copied(made)
            native_kernel.run(mine)
            assert_alike(mine, wanted, made)


@pytest.mark.parametrize("compact", [False, True])
def test_stochastic_rounding_has_the_same_bits_as_the_reference(level: str, compact: bool) -> None:
    made = update("adamw", torch.bfloat16, compact=compact, stochastic=True)
    mine, wanted, plain = copied(made), copied(made), replace(copied(made), stochastic=False)
    for each, kernel in ((mine, native_kernel), (wanted, reference), (plain, native_kernel)):
        kernel.run(each)
    for a, b, c in zip(mine.slices, wanted.slices, plain.slices, strict=True):
        assert (a.weight == b.weight).float().mean() > 0.999 or len(a.weight) < 1000
        assert len(a.weight) < 1000 or (a.weight != c.weight).float().mean() > 0.05, (
            "it rounds otherwise than to nearest"
        )


def test_stochastic_rounding_is_right_on_average(level: str) -> None:
    made = update("sgd", torch.bfloat16, sizes=(1 << 16,), density=None, stochastic=True)
    weight, rate = made.slices[0].weight, 2.0**-12
    weight.fill_(1.0)  # the next bfloat16 is 1 - 2^-8: one step of 2^-12 is a sixteenth of the way
    made.grads[0].fill_(-1.0)
    made.coefficients[:, 1], made.coefficients[:, 7] = 0.0, rate
    native_kernel.run(made)
    share = (weight != 1).float().mean().item()
    assert set(weight.tolist()) == {1.0, 1.0 - 2.0**-8}
    assert abs(share - 1 / 16) < 5 * (1 / 16 / (1 << 16)) ** 0.5


def test_another_step_or_parameter_rounds_otherwise() -> None:
    words = [reference.random_words(seed, step, torch.arange(4096)) for seed, step in ((1, 1), (1, 2), (2, 1))]
    for i in range(3):
        for j in range(i):
            assert (words[i] == words[j]).sum() <= 1
    far = reference.random_words(1, 1, torch.arange(4096) + (1 << 32))
    assert (words[0] == far).sum() <= 1, "places beyond 2^32 have words of their own"


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(1, 9000), min_size=1, max_size=4), st.floats(0, 1), st.booleans(), st.integers(0, 999))
def test_any_sizes_and_densities_agree(sizes: list[int], density: float, compact: bool, seed: int) -> None:
    torch.manual_seed(seed)
    made = update("adamw", compact=compact, density=density, sizes=sizes, holes=False)
    mine, wanted = copied(made), copied(made)
    native_kernel.run(mine)
    reference.run(wanted)
    assert_alike(mine, wanted, made)


@given(st.integers(1, 20000), st.floats(0, 1))
@settings(deadline=None, max_examples=40)
def test_offsets_count_what_comes_before_each_chunk(size: int, density: float) -> None:
    kept = torch.rand(size) < density
    offsets = chunk_offsets(Mask.from_dense(kept).bits)
    assert offsets.tolist() == [int(kept[:start].sum()) for start in range(0, size, 4096)]


def test_a_found_inf_leaves_everything_as_it_was() -> None:
    for kernel in (native_kernel, reference):
        made = update("adamw", density=None)
        mine = replace(copied(made), found_inf=torch.tensor(1.0))
        kernel.run(mine)
        assert all(torch.equal(a.weight, b.weight) for a, b in zip(mine.slices, made.slices, strict=True))


def test_the_scale_divides_the_gradient() -> None:
    made = update("adamw")
    scaled = copied(made)
    for grad in scaled.grads:
        grad.mul_(1024.0)
    scaled = replace(scaled, grad_scale=torch.tensor(1024.0))
    plain = copied(made)
    native_kernel.run(scaled)
    native_kernel.run(plain)
    assert all(torch.equal(a.weight, b.weight) for a, b in zip(scaled.slices, plain.slices, strict=True))


def test_kernels_are_chosen_once_and_refuse_aloud() -> None:
    assert MASKED_ADAMW.choose("cpu", torch.bfloat16).name == "cpu"
    assert MASKED_ADAMW.choose("cpu", torch.float64).name == "reference"
    with pytest.raises(KernelError, match="has no kernel 'fast'; it has"):
        MASKED_ADAMW.choose("cpu", torch.float32, "fast")
    with pytest.raises(KernelError, match=r"no kernel for torch.float64 on cpu; cpu: it takes torch.float32"):
        MASKED_ADAMW.choose("cpu", torch.float64, "cpu")
