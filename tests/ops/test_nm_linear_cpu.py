"""nm_linear's CPU kernels on every instruction set that this processor has."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from ajour._native import native
from ajour.formats import NMMatrix
from ajour.ops import NM_LINEAR
from ajour.ops.nm_linear.native_kernel import EXPANDED, KERNEL
from ajour.ops.prepare import prepare, restore
from ajour.terms.errors import KernelError
from ajour.terms.pattern import NM
from ajour.terms.problem import ACTIVATIONS, Problem
from pruned import bits, keep_mask, stored_places, truth

LEVELS = ("portable", "avx2", "avx512", "avx512bf16")
PRESENT = LEVELS[: LEVELS.index(native.best_cpu_isa()) + 1]
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# every width of a code, windows of one and of several groups, even and odd numbers of slots
PATTERNS = (
    *(NM(2, 4), NM(1, 4), NM(3, 4), NM(1, 2), NM(1, 8), NM(4, 8), NM(1, 16), NM(6, 16)),
    *(NM(1, 3), NM(2, 5), NM(3, 7), NM(5, 12), NM(1, 32), NM(24, 31)),
)


@pytest.fixture(params=PRESENT)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each instruction set of this processor in turn."""
    before = native.cpu_isa()
    native.set_cpu_isa(request.param)
    yield request.param
    native.set_cpu_isa(before)


def draw(pattern: NM, n: int, k: int, dtype: torch.dtype) -> Tensor:
    return torch.where(keep_mask(pattern, n, k), torch.randn(n, k), 0.0).to(dtype)


def run(matrix: NMMatrix, x: Tensor, kernel: str = "cpu", bias: Tensor | None = None, activation: str = "none",
        residual: Tensor | None = None) -> Tensor:  # fmt: skip
    packed, table = prepare(NM_LINEAR, matrix, [(None, kernel, "")])
    return NM_LINEAR.call(x, packed, bias, table, activation, residual)


def on_one_thread(x: Tensor, w: Tensor) -> Tensor:
    """x @ w.T as torch sums it up on one thread, whose order no other thread changes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return functional.linear(x, w)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_every_pattern_is_within_the_error_rule_on_every_level(isa: str, pattern: NM, dtype: torch.dtype) -> None:
    for turn, (n, k) in enumerate(((16, 64), (37, 77), (5, 3), (48, 257))):
        w = draw(pattern, n, k, dtype)
        packed, table = prepare(NM_LINEAR, NMMatrix.from_dense(w, pattern), [(None, "cpu", "")])
        for m in (1, 4, 7, 13, 33):
            x = torch.randn(2 * m, k + 5).to(dtype)[::2, 3 : 3 + k]
            bias = torch.randn(n).to(dtype) if m % 2 else None
            residual = torch.randn(m, n).to(dtype) if (m + turn) % 3 else None
            activation = ACTIVATIONS[(m + turn) % len(ACTIVATIONS)]
            y = NM_LINEAR.call(x, packed, bias, table, activation, residual)
            truth(x, w, bias, residual, activation).check(y, f"{isa} {table} m={m} {activation}")


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
def test_every_number_of_rows_is_within_the_error_rule(isa: str, dtype: torch.dtype) -> None:
    w = draw(NM(2, 4), 33, 100, dtype)
    packed, table = prepare(NM_LINEAR, NMMatrix.from_dense(w, NM(2, 4)), [(None, "cpu", "")])
    for m in (*range(1, 34), 47, 97):
        x = torch.randn(m, 100).to(dtype)
        truth(x, w, None, None, "none").check(NM_LINEAR.call(x, packed, None, table, "none"), f"{isa} m={m}")


@pytest.mark.parametrize("k", [1536, 3072, 4096, 11008])
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
def test_activations_with_outlier_columns_stay_well_within_the_error_rule(isa: str, dtype: torch.dtype, k: int) -> None:
    """As after a trained layer's GELU, where one long chain of additions rounds at the outliers' size."""
    w = draw(NM(2, 4), 128, k, dtype)
    matrix, scale, ratios = NMMatrix.from_dense(w, NM(2, 4)), torch.randn(k).exp(), {}
    for m in (1, 7, 64, 256):
        x = (functional.gelu(torch.randn(m, k)) * scale).to(dtype)
        exact = x.double() @ w.double().T
        dense = float((on_one_thread(x, w).double() - exact).abs().max())
        allowed = 2 * dense + 2**-23 * float((x.double().abs() @ w.double().abs().T).max())
        ratios[m] = float((run(matrix, x).double() - exact).abs().max()) / allowed
    assert max(ratios.values()) <= 0.7, f"{isa} {dtype} k={k}: error / allowed for each number of rows {ratios}"


def test_tables_larger_than_the_scratch_are_cut_into_blocks(isa: str) -> None:
    w = draw(NM(1, 4), 20, 9001, torch.float32)
    x = torch.randn(50, 9001)
    truth(x, w, None, None, "none").check(run(NMMatrix.from_dense(w, NM(1, 4)), x), isa)


def test_any_problem_is_within_the_error_rule() -> None:
    @settings(max_examples=120, deadline=None, derandomize=True, database=None)
    @given(
        st.integers(2, 32).flatmap(lambda group: st.tuples(st.integers(1, group - 1), st.just(group))),
        st.tuples(st.integers(1, 40), st.integers(1, 120), st.integers(1, 100)),
        st.sampled_from(DTYPES),
        st.sampled_from(PRESENT),
    )
    def check(pattern: tuple[int, int], shape: tuple[int, int, int], dtype: torch.dtype, level: str) -> None:
        m, n, k = shape
        w, x = draw(NM(*pattern), n, k, dtype), torch.randn(m, k).to(dtype)
        matrix = NMMatrix.from_dense(w, NM(*pattern))
        native.set_cpu_isa(level)
        for kernel in ("cpu", "cpu_unpack"):
            truth(x, w, None, None, "none").check(run(matrix, x, kernel), f"{level} {kernel} {pattern} {shape}")
        packed, table = prepare(NM_LINEAR, matrix, [(None, "cpu", "")])
        for name, tensor in restore(NM_LINEAR, packed, table).tensors().items():
            assert torch.equal(bits(tensor), bits(matrix.tensors()[name])), f"{pattern} {shape}: {name} differs"

    before = native.cpu_isa()
    try:
        check()
    finally:
        native.set_cpu_isa(before)


@pytest.mark.parametrize("kernel", ["cpu", "cpu_unpack"])
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
def test_inf_in_the_last_column_reaches_only_the_outputs_that_store_it(
    isa: str, dtype: torch.dtype, kernel: str
) -> None:
    for pattern in PATTERNS:
        for n, k in ((33, 33), (20, 64), (7, 2)):
            matrix = NMMatrix.from_dense(draw(pattern, n, k, dtype), pattern)
            x = torch.randn(70, k).to(dtype)
            x[::3, -1] = float("inf")
            y = run(matrix, x, kernel)
            struck = stored_places(matrix)[:, -1]
            assert y[1::3].isfinite().all(), f"{pattern}: a row of finite x is not finite"
            assert y[2::3].isfinite().all(), f"{pattern}: a row of finite x is not finite"
            assert y[::3, ~struck].isfinite().all(), f"{pattern}: Inf reached outputs that don't store its column"
            assert not y[::3, struck].isfinite().any(), f"{pattern}: Inf was lost"


def test_results_repeat_bit_for_bit_whatever_the_threads(isa: str) -> None:
    threads = torch.get_num_threads()
    for dtype in DTYPES:
        matrix = NMMatrix.from_dense(draw(NM(2, 4), 256, 300, dtype), NM(2, 4))
        for m in (1, 5, 40, 300):
            x = torch.randn(m, 300).to(dtype)
            try:
                found = []
                for count in (1, 2, 3, 2):
                    torch.set_num_threads(count)
                    found.append(bits(run(matrix, x, activation="gelu")))
            finally:
                torch.set_num_threads(threads)
            assert all(torch.equal(found[0], other) for other in found[1:]), f"{dtype} m={m}"


GUARDED = """
import ctypes, mmap, torch
from ajour._native import native
from ajour.formats import NMMatrix
from ajour.ops import NM_LINEAR
from ajour.ops.prepare import prepare
from ajour.terms.pattern import NM
page = mmap.PAGESIZE
memory = mmap.mmap(-1, 8 * page)
start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
assert ctypes.CDLL(None, use_errno=True).mprotect(ctypes.c_void_p(start + 7 * page), page, 0) == 0
for level in {levels}:
    native.set_cpu_isa(level)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        size = dtype.itemsize
        for pattern in (NM(2, 4), NM(1, 3), NM(4, 8), NM(3, 32)):
            for m, k in ((1, 5), (3, 31), (17, 33), (2, 64)):
                x = torch.frombuffer(memory, dtype=dtype, count=m * k, offset=7 * page - m * k * size).view(m, k)
                x.copy_(torch.randn(m, k))
                w = torch.randn(20, k).to(dtype)
                w *= (torch.arange(k) % pattern.group < pattern.keep)
                packed, table = prepare(NM_LINEAR, NMMatrix.from_dense(w, pattern), [(None, "cpu", "")])
                assert NM_LINEAR.call(x, packed, None, table, "none").isfinite().all()
print("no fault")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="guards memory with mprotect")
def test_nothing_beyond_x_is_read() -> None:
    code = GUARDED.replace("{levels}", repr(PRESENT))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout.strip() == "no fault", f"exit code {done.returncode}: {done.stderr[-2000:]}"


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=lambda d: str(d)[6:])
def test_the_expanded_weight_is_the_dense_one_bit_for_bit(isa: str, dtype: torch.dtype) -> None:
    for pattern in PATTERNS:
        for n, k in ((37, 77), (64, 128), (3, 5)):
            matrix = NMMatrix.from_dense(draw(pattern, n, k, dtype), pattern)
            x = torch.randn(64, k).to(dtype)
            dense = torch.ops.mkldnn._linear_pointwise(x, matrix.to_dense(), None, "none", [], "")
            assert torch.equal(run(matrix, x, "cpu_unpack"), dense), f"{pattern} {n}x{k}"


def test_a_large_weight_is_expanded_bit_for_bit() -> None:
    matrix = NMMatrix.from_dense(draw(NM(2, 4), 1600, 1500, torch.float32), NM(2, 4))  # more than 8 MiB: huge pages
    x = torch.randn(64, 1500)
    dense = torch.ops.mkldnn._linear_pointwise(x, matrix.to_dense(), None, "none", [], "")
    assert torch.equal(run(matrix, x, "cpu_unpack"), dense)


def test_both_kernels_read_one_packed_weight() -> None:
    matrix = NMMatrix.from_dense(draw(NM(2, 4), 64, 64, torch.float32), NM(2, 4))
    packed, table = prepare(NM_LINEAR, matrix, [(64, "cpu", ""), (None, "cpu_unpack", "")])
    assert len(packed) == 2
    for m in (64, 65):
        x = torch.randn(m, 64)
        truth(x, matrix.to_dense(), None, None, "none").check(NM_LINEAR.call(x, packed, None, table, "none"), table)


def test_a_2_4_weight_packs_to_17_32nds_of_its_dense_bytes() -> None:
    for dtype, share in ((torch.float32, 17 / 32), (torch.bfloat16, 9 / 16)):
        matrix = NMMatrix.from_dense(draw(NM(2, 4), 64, 64, dtype), NM(2, 4))
        packed, _ = prepare(NM_LINEAR, matrix, [(None, "cpu", "")])
        assert sum(t.nbytes for t in packed) == share * 64 * 64 * dtype.itemsize


def problem(m: int = 64, dtype: str = "float32", device: str = "cpu") -> Problem:
    return Problem("nm_linear", NM(2, 4), m, 64, 64, dtype, device)


def test_refusals_say_why() -> None:
    assert KERNEL.why_not(problem()) is None
    assert EXPANDED.why_not(problem()) is None
    assert "this layer is float64" in str(KERNEL.why_not(problem(dtype="float64")))
    assert "this layer is on cuda" in str(EXPANDED.why_not(problem(device="cuda")))
    assert "can pay from 64 rows on" in str(EXPANDED.why_not(problem(m=63)))
    with pytest.raises(KernelError, match="1 <= keep < group <= 32, found 4:4"):
        native.NMPanels(16, 16, 4, 4, 4, False)
    with pytest.raises(KernelError, match="values of 2 or 4 bytes, found 8"):
        native.NMPanels(16, 16, 2, 4, 8, False)
