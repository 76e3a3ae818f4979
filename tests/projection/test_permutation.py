"""The search for an order of in features: never worse, always an order, the same every time, and worth its time."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import permutations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ajour._native import native
from ajour.projection.permutation import kept_energy, search
from ajour.terms.pattern import NM

NAMES = ("portable", "avx2", "avx512", "avx512bf16")
LEVELS = NAMES[: NAMES.index(native.best_cpu_isa()) + 1]


@pytest.fixture(params=LEVELS)
def level(request: pytest.FixtureRequest) -> Iterator[str]:
    native.set_cpu_isa(request.param)
    yield request.param
    native.set_cpu_isa(native.best_cpu_isa())


@pytest.mark.parametrize(("n", "first", "second"), [(1, 1, 1), (300, 2, 3), (513, 1, 2)])
def test_sums_of_maxima_are_those_of_all_pairs(level: str, n: int, first: int, second: int) -> None:
    a, b = torch.rand(first, n, native.MAX_SUM_ROWS), torch.rand(second, n, native.MAX_SUM_COLUMNS)
    sums = torch.empty(first * native.MAX_SUM_ROWS, second * native.MAX_SUM_COLUMNS)
    native.max_sums(a.data_ptr(), first, b.data_ptr(), second, n, sums.data_ptr())
    left, right = (t.permute(1, 0, 2).flatten(1).double() for t in (a, b))
    expected = torch.maximum(left.unsqueeze(2), right.unsqueeze(1)).sum(0)
    torch.testing.assert_close(sums.double(), expected, rtol=1e-5, atol=1e-6)


def drawn(n: int, k: int, seed: int = 0) -> Tensor:
    """Energies of columns of very different size."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(n, k, generator=generator) * torch.rand(k, generator=generator).square()).square()


@given(
    st.integers(1, 30), st.integers(1, 45), st.sampled_from((NM(2, 4), NM(1, 4), NM(1, 2), NM(3, 5), NM(4, 8))),
    st.integers(0, 99),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_it_finds_an_order_that_is_never_worse(n: int, k: int, pattern: NM, seed: int) -> None:
    energy = drawn(n, k, seed)
    found = search(energy, pattern)
    assert found.order.sort().values.tolist() == list(range(k))
    assert found.before == kept_energy(energy, pattern)
    assert found.after == kept_energy(energy[:, found.order], pattern) >= found.before


def test_the_same_weight_gives_the_same_order_on_any_number_of_threads() -> None:
    energy, before = drawn(64, 96), torch.get_num_threads()
    try:
        orders = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            orders.append(search(energy, NM(2, 4)).order.tolist())
    finally:
        torch.set_num_threads(before)
    assert orders[0] == orders[1] == search(energy, NM(2, 4)).order.tolist()


def test_an_order_that_loses_nothing_is_found() -> None:
    """Two full columns in each group fit 2:4, and side by side they don't."""
    energy = torch.zeros(20, 32)
    energy[:, :16] = torch.rand(20, 16) + 0.1
    found = search(energy, NM(2, 4))
    assert found.before < found.after
    assert found.after == pytest.approx(float(energy.sum(dtype=torch.float64)), rel=1e-6)


def test_it_comes_close_to_the_best_of_all_orders() -> None:
    for seed in range(5):
        energy = drawn(6, 8, seed)
        best = max(
            kept_energy(energy[:, [0, *rest, *(set(range(1, 8)) - set(rest))]], NM(2, 4))
            for rest in permutations(range(1, 8), 3)
        )
        assert search(energy, NM(2, 4)).after == pytest.approx(best, rel=0.01)


def test_it_saves_most_of_what_skewed_columns_lose() -> None:
    energy = drawn(128, 128)
    found, total = search(energy, NM(2, 4)), float(energy.sum(dtype=torch.float64))
    assert total - found.after < 0.4 * (total - found.before)
