"""bitmap_linear's CPU kernels on every instruction set of this machine: exact packing, right results, no leaks."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ajour._native import native
from ajour.formats import BitmapMatrix
from ajour.ops import BITMAP_LINEAR
from ajour.ops.bitmap_linear import chunked_kernel, native_kernel
from ajour.ops.prepare import prepare, restore
from ajour.terms.pattern import Unstructured
from ajour.terms.problem import ACTIVATIONS, Problem
from pruned import bits, keep_mask, truth

NAMES = ("portable", "avx2", "avx512", "avx512bf16")
LEVELS = NAMES[: NAMES.index(native.best_cpu_isa()) + 1]
FORMS = (("cpu", ""), ("cpu_chunked", "256"), ("cpu_chunked", "128"), ("cpu_unpack", ""))
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.fixture(params=LEVELS)
def level(request: pytest.FixtureRequest) -> Iterator[str]:
    native.set_cpu_isa(request.param)
    yield request.param
    native.set_cpu_isa(native.best_cpu_isa())


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def weight(n: int, k: int, density: float, dtype: torch.dtype, skew: bool = False) -> Tensor:
    return torch.where(keep_mask(Unstructured(), n, k, density, skew), torch.randn(n, k), 0.0).to(dtype)


def packed_as(w: Tensor, kernel: str, config: str) -> tuple[list[Tensor], str]:
    return prepare(BITMAP_LINEAR, BitmapMatrix.from_dense(w), [(None, kernel, config)])


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
@pytest.mark.parametrize(("kernel", "config"), FORMS)
def test_every_level_is_right_for_every_tile_of_tokens(
    level: str, kernel: str, config: str, dtype: torch.dtype
) -> None:
    for turn, (n, k, density) in enumerate(
        ((130, 300, 0.1), (17, 64, 0.5), (40, 517, 0.3), (5, 33, 1.0), (33, 700, 0.02))
    ):
        w = weight(n, k, density, dtype, skew=turn == 2)
        packed, table = packed_as(w, kernel, config)
        for m in (1, 2, 3, 6, 16, 17, 33, 64, 70, 131):
            x = torch.randn(m, k).to(dtype)
            bias = torch.randn(n).to(dtype) if m % 2 else None
            residual = torch.randn(m, n).to(dtype) if m % 3 else None
            activation = ACTIVATIONS[(turn + m) % len(ACTIVATIONS)]
            expected = truth(x, w, bias, residual, activation)
            y = BITMAP_LINEAR.call(x, packed, bias, table, activation, residual)
            expected.check(y, f"{level} {kernel} {config} {n}x{k} m={m} {activation}")


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
@pytest.mark.parametrize(("kernel", "config"), FORMS)
def test_what_is_not_kept_is_not_multiplied(level: str, kernel: str, config: str, dtype: torch.dtype) -> None:
    # rows of every length, so that each has lanes, tails and neighbours that it does not own; Inf wherever it is zero
    n, k = 48, 140
    w = torch.randn(n, k)
    for row in range(n):
        w[row, torch.randperm(k)[row * 3 :]] = 0
    w = w.to(dtype)
    packed, table = packed_as(w, kernel, config)
    for m in (1, 5, 20, 66):
        for row in range(0, n, 7):
            x = torch.randn(m, k).to(dtype)
            expected = truth(x, w[row : row + 1], None, None, "none")
            x[:, w[row] == 0] = float("inf")
            y = BITMAP_LINEAR.call(x, packed, None, table, "none")
            expected.check(y[:, row : row + 1], f"{level} {kernel} row {row} m={m}")


@settings(deadline=None, max_examples=60)
@given(
    n=st.integers(1, 150), k=st.integers(1, 600), density=st.sampled_from((0.0, 0.03, 0.3, 0.9, 1.0)),
    form=st.sampled_from(FORMS), dtype=st.sampled_from(DTYPES), skew=st.booleans(), seed=st.integers(0, 2**31),
)  # fmt: skip
def test_packing_is_undone_bit_for_bit(
    n: int, k: int, density: float, form: tuple[str, str], dtype: torch.dtype, skew: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    integer = {4: torch.int32, 2: torch.int16}[dtype.itemsize]
    anything = torch.randint(-(2**31), 2**31 - 1, (n, k)).to(integer).view(dtype)  # NaN of any payload, Inf, subnormals
    matrix = BitmapMatrix.from_dense(torch.where(keep_mask(Unstructured(), n, k, density, skew), anything, 0))
    packed, table = prepare(BITMAP_LINEAR, matrix, [(None, *form)])
    for name, tensor in restore(BITMAP_LINEAR, packed, table).tensors().items():
        assert torch.equal(bits(tensor), bits(matrix.tensors()[name])), name


@pytest.mark.parametrize(("kernel", "config"), FORMS)
def test_a_stored_zero_stays_stored(kernel: str, config: str) -> None:
    matrix = BitmapMatrix.from_dense(torch.full((9, 70), 1e-30)).to(dtype=torch.float16)  # rounds to zero, bits stay
    packed, table = prepare(BITMAP_LINEAR, matrix, [(None, kernel, config)])
    assert torch.equal(restore(BITMAP_LINEAR, packed, table).tensors()["bitmaps"], matrix.tensors()["bitmaps"])


def test_chunks_hold_no_padding_and_list_the_longest_rows_first() -> None:
    w = weight(200, 520, 0.2, torch.float32, skew=True)
    values, columns, index = packed_as(w, "cpu_chunked", "256")[0]
    panel_count, chunks = index[:2].tolist()
    panels, rest = index[2 : 4 + 2 * panel_count].view(-1, 2), index[4 + 2 * panel_count :]
    cells, visits = (
        rest[: 2 * panel_count * chunks + 2].view(-1, 2),
        rest[2 * panel_count * chunks + 2 :].view(torch.int32),
    )
    nonzeros = int((w != 0).sum())
    assert values.numel() == columns.numel() == nonzeros + native.VALUE_TAIL
    counts = [visits[a:b] >> 16 for a, b in zip(cells[:-1, 0].tolist(), cells[1:, 0].tolist(), strict=True)]
    assert sum(int(c.sum()) for c in counts) == nonzeros
    assert all(bool((c.diff() <= 0).all()) for c in counts)
    assert panels[0, 0] == 0
    assert panels[-1, 0] == 200
    assert bool((panels[:-1, 0] % native.PANEL_ALIGN == 0).all())


@pytest.mark.parametrize(("kernel", "config"), FORMS)
@pytest.mark.parametrize("skew", [False, True])
def test_results_depend_on_neither_run_nor_threads(kernel: str, config: str, skew: bool, threads: None) -> None:
    w = weight(600, 512, 0.3, torch.float32, skew)
    packed, table = packed_as(w, kernel, config)
    for m in (1, 4, 20, 100):
        x = torch.randn(m, 512)
        torch.set_num_threads(1)
        first = BITMAP_LINEAR.call(x, packed, None, table, "none")
        if kernel == "cpu_unpack":  # oneDNN's own order of sums depends on the threads
            assert torch.equal(first, BITMAP_LINEAR.call(x, packed, None, table, "none"))
            continue
        for count in (1, 2, 3, 2):
            torch.set_num_threads(count)
            assert torch.equal(first, BITMAP_LINEAR.call(x, packed, None, table, "none")), f"{count} threads, m={m}"


@pytest.mark.parametrize(("kernel", "config"), FORMS)
def test_strides_of_x_and_residual_are_respected(level: str, kernel: str, config: str) -> None:
    n, k, m = 37, 90, 70
    w = weight(n, k, 0.4, torch.float32)
    packed, table = packed_as(w, kernel, config)
    bias = torch.randn(2 * n)[::2]
    layouts = (
        torch.randn(m, k + 5)[:, 3 : 3 + k],
        torch.randn(k, m).T,
        torch.randn(1, k).expand(m, k),
        torch.randn(2 * m, k)[::2],
    )
    residuals = (torch.randn(m, n + 1)[:, 1:], torch.randn(n, m).T, torch.randn(1, n).expand(m, n), torch.randn(m, n))
    for x, residual in zip(layouts, residuals, strict=True):
        expected = truth(x, w, bias, residual, "relu")
        expected.check(BITMAP_LINEAR.call(x, packed, bias, table, "relu", residual), f"{level} {kernel} {x.stride()}")


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
def test_a_weight_is_unpacked_slice_by_slice(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native_kernel, "SLICE_BYTES", 64 * 100 * 4)
    n, k, m = 200, 100, 80
    w = weight(n, k, 0.5, dtype)
    packed, table = packed_as(w, "cpu_unpack", "")
    x, bias, residual = torch.randn(m, k).to(dtype), torch.randn(n).to(dtype), torch.randn(m, n).to(dtype)
    expected = truth(x, w, bias, residual, "gelu")
    expected.check(BITMAP_LINEAR.call(x, packed, bias, table, "gelu", residual), "sliced")


@pytest.mark.parametrize(
    ("kernel", "m", "dtype", "device", "reason"),
    [
        (
            native_kernel.KERNEL,
            65,
            "float32",
            "cpu",
            "decodes the weight anew for every 8 rows of x, and 65 are more than 64",
        ),
        (native_kernel.UNPACK_KERNEL, 63, "float32", "cpu", "63 rows of x don't repay; from 64 on"),
        (native_kernel.KERNEL, 1, "float64", "cpu", "takes float32, bfloat16, float16, this layer is float64"),
        (chunked_kernel.KERNEL, 1, "float32", "cuda", "runs on the CPU, this layer is on cuda"),
        (native_kernel.UNPACK_KERNEL, 64, "float32", "cuda", "runs on the CPU, this layer is on cuda"),
    ],
)
def test_refusals_say_why(kernel: native_kernel.Kernel, m: int, dtype: str, device: str, reason: str) -> None:
    found = kernel.why_not(Problem("bitmap_linear", Unstructured(), m, 64, 64, dtype, device))
    assert found is not None
    assert reason in found
