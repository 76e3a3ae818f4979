"""Every kernel of every op, whatever the tables hold, against float64 over awkward problems."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ajour import ops
from ajour.formats import SparseMatrix
from ajour.ops.functional import problem_of
from ajour.ops.library import LinearOp
from ajour.ops.prepare import prepare, restore
from ajour.terms.pattern import NM, Block, Dense, Pattern, Unstructured
from ajour.terms.problem import ACTIVATIONS
from pruned import Truth, bits, keep_mask, stored_places, truth

# all but the op that rounds x, whose truth is another: test_scaled_nm_linear.py
LINEAR_OPS = {name: op for name, op in ops.LINEAR_OPS.items() if name != "scaled_nm_linear"}
ROWS = (1, 3, 7, 17, 64, 97, 0)
SIDES = (1, 5, 8, 31, 33, 64, 100, 160, 384)
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
NM_PATTERNS = tuple(NM(*p) for p in ((2, 4), (1, 4), (1, 2), (2, 8), (3, 5), (4, 8), (7, 32)))
BLOCK_PATTERNS = tuple(
    Block(*p) for p in ((32, 32), (16, 16), (4, 1), (8, 1), (16, 1), (1, 8), (5, 7), (64, 64), (128, 32))
)


class Weight(NamedTuple):
    """How a weight is drawn: its pattern, the share of it that is kept and whether rows differ widely."""

    pattern: Pattern
    density: float = 0.4
    skew: bool = False
    edge: str = ""  # "empty rows", "full rows"

    def draw(self, n: int, k: int, dtype: torch.dtype) -> Tensor:
        mask = keep_mask(self.pattern, n, k, self.density, self.skew)
        if self.edge == "empty rows":
            mask[::3] = False
        if self.edge == "full rows":
            mask[::3] = True
        return torch.where(mask, torch.randn(n, k), 0.0).to(dtype)


WEIGHTS = {
    "nm_linear": (*(Weight(p) for p in NM_PATTERNS), Weight(NM(2, 4), skew=True), Weight(NM(2, 8), edge="empty rows")),
    "block_linear": (
        *(Weight(p) for p in BLOCK_PATTERNS),
        Weight(Block(16, 16), skew=True),
        Weight(Block(8, 4), density=0.0),
        Weight(Block(32, 32), density=1.0),
        Weight(Block(4, 1), edge="empty rows"),
    ),
    "bitmap_linear": (
        Weight(Unstructured(), 0.1),
        Weight(Unstructured(), 0.5),
        Weight(Unstructured(), 0.0),
        Weight(Unstructured(), 1.0),
        Weight(Unstructured(), 0.1, skew=True),
        Weight(Unstructured(), 0.1, edge="empty rows"),
        Weight(Unstructured(), 0.1, edge="full rows"),
    ),
    "split_linear": (
        Weight(Unstructured(), 0.5),
        Weight(Unstructured(), 0.0),
        Weight(Unstructured(), 1.0),
        Weight(Unstructured(), 0.3, skew=True),
        Weight(Unstructured(), 0.6, edge="empty rows"),
    ),
    "dense_linear": (Weight(Dense()),),
}


def of(op: str) -> list[str]:
    """The names of an op's kernels."""
    return list(LINEAR_OPS[op].kernels)


KERNELS = [(op, kernel) for op in LINEAR_OPS for kernel in of(op)]
SPARSE_KERNELS = [
    (op.name, name) for op in LINEAR_OPS.values() for name, kernel in op.kernels.items() if kernel.packing != "dense"
]


class Case(NamedTuple):
    """One call: everything but the kernel."""

    x: Tensor
    bias: Tensor | None
    residual: Tensor | None
    activation: str
    truth: Truth


def rows_of_x(m: int, k: int, dtype: torch.dtype, layout: int) -> Tensor:
    """x with m rows in one of six layouts."""
    if layout == 1:
        return torch.randn(2 * m, k).to(dtype)[::2]
    if layout == 2:
        return torch.randn(k, m).to(dtype).t()
    if layout == 3:
        return torch.randn(1, k).to(dtype).expand(m, k)
    if layout == 4:
        return torch.randn(m, k + 3).to(dtype)[:, 2 : 2 + k]
    if layout == 5:
        return torch.randn(m, 1, k).to(dtype)
    if layout == 6 and m == 1:
        return torch.randn(k).to(dtype)
    return torch.randn(m, k).to(dtype)


@lru_cache(maxsize=2)  # the kernels of one op follow each other
def cases(op: str, index: int, dtype: torch.dtype) -> list[tuple[SparseMatrix, list[Case]]]:
    """Four shapes, seven row counts each; the other choices take turns, so that the sweep as a whole pairs them all."""
    weight, turn, found = WEIGHTS[op][index], index, []
    for place in range(4):
        n, k = SIDES[(place + 4 * index) % len(SIDES)], SIDES[(place * 2 + index) % len(SIDES)]
        w = weight.draw(n, k, dtype)
        calls = []
        for m in ROWS:
            turn += 1
            x = rows_of_x(m, k, dtype, turn % 7)
            bias = torch.randn(2 * n).to(dtype)[:: turn % 3].narrow(0, 0, n) if turn % 3 else None
            residual = torch.randn(*x.shape[:-1], n + 1).to(dtype)[..., :n] if turn % 4 == 0 else None
            activation = ACTIVATIONS[turn % len(ACTIVATIONS)]
            calls.append(Case(x, bias, residual, activation, truth(x, w, bias, residual, activation)))
        found.append((LINEAR_OPS[op].matrix.from_dense(w, weight.pattern), calls))
    return found


def accepted(
    op: LinearOp, kernel: str, matrix: SparseMatrix, m: int, activation: str, refusals: Counter[tuple[str, str, str]]
) -> bool:
    reason = op.kernel(kernel).why_not(problem_of(matrix, m, activation))
    if reason is not None:
        assert len(reason.split()) > 3, f"{reason!r} is no sentence"
        refusals[op.name, kernel, re.sub(r"\d+ rows|\b\d+ are", "# rows", reason)] += 1
    return reason is None


def each_config(op: LinearOp, kernel: str, matrix: SparseMatrix, m: int) -> Iterator[tuple[str, list[Tensor], str]]:
    for config in op.kernel(kernel).configs(problem_of(matrix, m)):
        yield config, *prepare(op, matrix, [(None, kernel, config)])


@pytest.mark.parametrize(
    ("name", "index", "dtype", "kernel"),
    [(op, i, d, kernel) for op in LINEAR_OPS for i in range(len(WEIGHTS[op])) for d in DTYPES for kernel in of(op)],
)
def test_every_kernel_is_within_the_error_rule_and_repeats_itself(
    name: str, index: int, dtype: torch.dtype, kernel: str, refusals: Counter[tuple[str, str, str]]
) -> None:
    op = LINEAR_OPS[name]
    for matrix, calls in cases(name, index, dtype):
        packed: dict[str, tuple[list[Tensor], str]] = {}
        for turn, case in enumerate(calls):
            m = case.x.shape[:-1].numel()
            if not accepted(op, kernel, matrix, m, case.activation, refusals):
                continue
            configs = op.kernel(kernel).configs(problem_of(matrix, m, case.activation))
            config = configs[turn % len(configs)]
            if config not in packed:
                packed[config] = prepare(op, matrix, [(None, kernel, config)])
            tensors, table = packed[config]
            y = op.call(case.x, tensors, case.bias, table, case.activation, case.residual)
            what = f"{table!r} x={tuple(case.x.shape)} {case.x.stride()} {case.activation} bias={case.bias is not None}"
            assert y.dtype == dtype
            case.truth.check(y, what)
            again = op.call(case.x, tensors, case.bias, table, case.activation, case.residual)
            assert torch.equal(bits(y), bits(again)), f"{what}: two runs differ"


@pytest.mark.parametrize(("name", "kernel"), KERNELS)
def test_every_kernel_takes_random_problems(name: str, kernel: str, refusals: Counter[tuple[str, str, str]]) -> None:
    op = LINEAR_OPS[name]
    side = st.integers(1, 150)

    @settings(max_examples=40, deadline=None, derandomize=True, database=None)
    @given(
        weight=st.sampled_from(WEIGHTS[name]),
        sizes=st.tuples(st.integers(0, 70), side, side),
        dtype=st.sampled_from(DTYPES),
        layout=st.integers(0, 6),
        activation=st.sampled_from(ACTIVATIONS),
        extras=st.tuples(st.booleans(), st.booleans()),
        seed=st.integers(0, 1000),
    )
    def check(
        weight: Weight,
        sizes: tuple[int, int, int],
        dtype: torch.dtype,
        layout: int,
        activation: str,
        extras: tuple[bool, bool],
        seed: int,
    ) -> None:
        torch.manual_seed(seed)
        m, n, k = sizes
        w, x = weight.draw(n, k, dtype), rows_of_x(m, k, dtype, layout)
        matrix = op.matrix.from_dense(w, weight.pattern)
        if not accepted(op, kernel, matrix, m, activation, refusals):
            return
        bias = torch.randn(n).to(dtype) if extras[0] else None
        residual = torch.randn(*x.shape[:-1], n).to(dtype) if extras[1] else None
        expected = truth(x, w, bias, residual, activation)
        for config, packed, table in each_config(op, kernel, matrix, m):
            expected.check(op.call(x, packed, bias, table, activation, residual), f"{table} {config} m={m}")

    check()


def special_values(w: Tensor) -> Tensor:
    """w with its kept values replaced by NaN (payload too), Inf, subnormals and the largest, and zeros made -0.0."""
    info = torch.finfo(w.dtype)
    odd = torch.tensor([float("nan"), float("inf"), -float("inf"), info.smallest_normal / 4, info.max, info.min, 1.5])
    odd = odd.to(w.dtype)
    bits(odd)[0] += 1  # a NaN of its own
    drawn = odd[torch.randint(len(odd), w.shape)]
    return torch.where(w == 0, -torch.zeros_like(w), drawn)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
@pytest.mark.parametrize(("name", "kernel"), KERNELS)
def test_unpack_is_the_bit_exact_inverse_of_prepack(
    name: str, kernel: str, dtype: torch.dtype, refusals: Counter[tuple[str, str, str]]
) -> None:
    op = LINEAR_OPS[name]
    for weight in WEIGHTS[name]:
        for n, k in ((1, 1), (33, 100), (100, 31), (64, 160)):
            matrix = op.matrix.from_dense(special_values(weight.draw(n, k, dtype)), weight.pattern)
            if not accepted(op, kernel, matrix, 16, "none", refusals):
                continue
            for config, packed, table in each_config(op, kernel, matrix, 16):
                back = restore(op, packed, table)
                assert back.shape == matrix.shape
                assert back.pattern == matrix.pattern
                for part, tensor in matrix.tensors().items():
                    found = back.tensors()[part]
                    assert torch.equal(bits(found), bits(tensor)), f"{table} {config}: {part} differs"
                assert torch.equal(bits(op.weight(packed, table)), bits(matrix.to_dense()))


@pytest.mark.parametrize("dtype", DTYPES[:3], ids=lambda d: str(d)[6:])
@pytest.mark.parametrize(("name", "kernel"), SPARSE_KERNELS)
def test_inf_and_nan_in_x_reach_only_the_outputs_that_store_their_column(
    name: str, kernel: str, dtype: torch.dtype, refusals: Counter[tuple[str, str, str]]
) -> None:
    op = LINEAR_OPS[name]
    for index, weight in enumerate(WEIGHTS[name]):
        for m, n, k in ((1, 33, 100), (5, 64, 31), (19, 40, 64)):
            matrix = op.matrix.from_dense(weight.draw(n, k, dtype), weight.pattern)
            if not accepted(op, kernel, matrix, m, "none", refusals):
                continue
            x = torch.randn(m, k).to(dtype)
            for row in range(0, m, 2):  # the rows between stay finite
                x[row, (row * 7 + index) % k] = (float("nan"), float("inf"), -float("inf"))[row // 2 % 3]
            x[0, k - 1] = float("inf")
            products = torch.where(stored_places(matrix), x.double()[:, None] * matrix.to_dense().double(), 0.0)
            expected = products.sum(-1)
            finite = expected.isfinite()
            bound = float(truth(x.nan_to_num(0, 0, 0), matrix.to_dense(), None, None, "none").bound)
            for config, packed, table in each_config(op, kernel, matrix, m):
                y = op.call(x, packed, None, table, "none", None).double()
                what = f"{table} {config} m={m}"
                assert torch.equal(y.isnan(), expected.isnan()), f"{what}: NaN where it does not belong, or lost"
                assert torch.equal(y[y.isinf()], expected[expected.isinf()]), f"{what}: Inf differs"
                assert torch.equal(y.isfinite(), finite), f"{what}: a finite output is missing"
                assert float((y - expected)[finite].abs().amax() if finite.any() else 0.0) <= bound, what


@pytest.mark.parametrize("name", LINEAR_OPS)
def test_one_table_serves_several_kernels_by_rows(name: str) -> None:
    op, weight = LINEAR_OPS[name], WEIGHTS[name][0]
    matrix = op.matrix.from_dense(weight.draw(33, 64, torch.float32), weight.pattern)
    takes = [kernel for kernel, record in op.kernels.items() if record.why_not(problem_of(matrix, 8)) is None]
    choices = [
        (8 * (i + 1), kernel, op.kernel(kernel).configs(problem_of(matrix, 8))[0]) for i, kernel in enumerate(takes)
    ]
    packed, table = prepare(op, matrix, [*choices[:-1], (None, *choices[-1][1:])])
    for m in (1, 8, 9, 16, 17, 24, 25, 60):
        x = torch.randn(m, 64)
        truth(x, matrix.to_dense(), None, None, "none").check(op.call(x, packed, None, table, "none"), f"{table} m={m}")
    packings = {op.kernel(kernel).packing for kernel in takes}
    sizes = [len(op.kernel(k).prepack(matrix, "")) for k in {op.kernel(k).packing: k for k in takes}.values()]
    assert len(packed) == sum(sizes), f"{packings} are each packed once"
