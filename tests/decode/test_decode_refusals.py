"""What the GPU kernels refuse, they refuse in a sentence, before anything is packed or launched."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch

from ajour._native import native
from ajour.formats import NMMatrix
from ajour.ops import BITMAP_LINEAR, NM_LINEAR, decode
from ajour.ops.bitmap_linear import gap_kernel
from ajour.ops.nm_linear import cusparselt_kernel, decode_kernel
from ajour.terms.errors import KernelError
from ajour.terms.pattern import NM, Pattern, Unstructured
from ajour.terms.problem import Problem
from ajour.terms.row_table import parse_row_table

TWO_FOUR = NM(2, 4)


def problem(pattern: Pattern = TWO_FOUR, m: int = 8, **changed: Any) -> Problem:
    op = "nm_linear" if isinstance(pattern, NM) else "bitmap_linear"
    values: dict[str, Any] = {"n": 4096, "k": 4096, "dtype": "bfloat16", "device": "cuda", "capability": (9, 0)}
    return Problem(op, pattern, m, **(values | changed))


@pytest.fixture
def with_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if ajour had been built with CUDA, whatever this build is."""
    monkeypatch.setattr(decode, "HAS_CUDA", True)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (problem(device="cpu"), "it runs on CUDA, this layer is on cpu"),
        (problem(dtype="float32"), "it takes bfloat16 and float16, this layer is float32"),
        (problem(m=65), "it is for 1 to 64 rows, these are 65 rows"),
        (problem(capability=(7, 5)), r"it needs compute capability 8\.0, this device has 7\.5"),
        (problem(NM(3, 5)), "it takes groups of 4, 8, 16 and 32, this pattern is 3:5"),
        (
            problem(NM(31, 32), m=64, capability=(8, 6)),
            "bytes of shared memory for a block of 64 rows, this device has",
        ),
    ],
    ids=["device", "dtype", "rows", "capability", "group", "shared memory"],
)
@pytest.mark.usefixtures("with_cuda")
def test_cuda_decode_says_why_not(asked: Problem, said: str) -> None:
    reason = decode_kernel.KERNEL.why_not(asked)
    assert reason is not None
    with pytest.raises(KernelError, match=said):
        raise KernelError(reason)


def test_a_build_without_cuda_has_the_kernels_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "HAS_CUDA", False)
    for op, asked in ((NM_LINEAR, problem()), (BITMAP_LINEAR, problem(Unstructured()))):
        reason = op.kernel("cuda_decode").why_not(asked)
        assert reason == "ajour was built without CUDA; build it where nvcc is found, with AJOUR_CUDA=ON"


@pytest.mark.parametrize("capability", [(8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0)])
@pytest.mark.usefixtures("with_cuda")
def test_cuda_decode_takes_its_rows_on_every_card_since_ampere(capability: tuple[int, int]) -> None:
    for pattern in (NM(2, 4), NM(1, 4), NM(2, 8), Unstructured()):
        op = NM_LINEAR if isinstance(pattern, NM) else BITMAP_LINEAR
        for m in (1, 8, 9, 33, 64):
            asked = problem(pattern, m=m, capability=capability, n=100, k=33)
            assert op.kernel("cuda_decode").why_not(asked) is None
            assert op.kernel("cuda_decode").configs(asked)[0] == "c2 s4"


def test_a_configuration_is_blocks_and_stages() -> None:
    assert decode.parse_config("") == (2, 4)
    assert [decode.parse_config(config) for config in decode.configs(problem())] == [
        (2, 4),
        (1, 8),
        (1, 4),
        (3, 3),
        (2, 3),
    ]
    with pytest.raises(KernelError, match="'s4' is no decode configuration; expected something like 'c2 s4'"):
        decode.parse_config("s4")


def test_2_4_with_few_rows_may_also_go_without_tensor_cores() -> None:
    record = NM_LINEAR.kernel("cuda_decode")
    for asked, lanes in ((problem(m=4), 2), (problem(m=5), 0), (problem(NM(1, 4), m=1), 0)):
        assert sum(config.startswith("lanes c") for config in record.configs(asked)) == lanes


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (problem(Unstructured(), m=5, density=0.1), "it is for 1 to 4 rows, these are 5 rows"),
        (problem(Unstructured(), m=1, density=0.3), r"gaps pay up to 25% non-zeros, this weight has 30\.0%"),
        (problem(Unstructured(), m=1, density=0.1, device="cpu"), "it runs on CUDA, this layer is on cpu"),
        (problem(Unstructured(), m=1, density=0.1), None),
    ],
)
@pytest.mark.usefixtures("with_cuda")
def test_cuda_gaps_says_why_not(asked: Problem, said: str | None) -> None:
    reason = BITMAP_LINEAR.kernel("cuda_gaps").why_not(asked)
    assert (reason is None) == (said is None)
    assert said is None or re.fullmatch(said, str(reason))


def test_a_configuration_of_gaps_is_blocks() -> None:
    with pytest.raises(KernelError, match="'s4' is no configuration of gap rows; expected something like 'c3'"):
        gap_kernel._launch(1, 64, 64, "s4", 0)


def has_cusparselt(found: bool) -> Callable[[], bool]:
    return lambda: found


def test_cusparselt_is_refused_where_torch_lacks_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cusparselt, "is_available", has_cusparselt(False))
    assert cusparselt_kernel.KERNEL.why_not(problem()) == "this torch was built without cuSPARSELt"


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (problem(device="cpu"), "cuSPARSELt runs on CUDA, this layer is on cpu"),
        (problem(NM(1, 4)), "cuSPARSELt takes 2:4, this pattern is 1:4"),
        (problem(dtype="float32"), "it takes bfloat16 and float16 here, this layer is float32"),
        (problem(n=100), "cuSPARSELt needs sides that are multiples of 16, this weight is 100x4096"),
        (problem(capability=(7, 5)), "cuSPARSELt needs compute capability 8.0, this device has 7.5"),
        (problem(), None),
    ],
)
def test_cusparselt_says_why_not(asked: Problem, said: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cusparselt, "is_available", has_cusparselt(True))
    assert cusparselt_kernel.KERNEL.why_not(asked) == said


def test_cusparselt_gives_every_algorithm_to_the_planner(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cusparselt, "get_max_alg_id", lambda: 2)
    assert cusparselt_kernel.KERNEL.configs(problem()) == ("a0", "a1", "a2")


def test_where_torch_does_not_say_how_many_algorithms_there_are_the_first_that_fails_ends_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[int] = []

    def multiply(blob: torch.Tensor, b: torch.Tensor, alg_id: int, **rest: object) -> torch.Tensor:
        asked.append(alg_id)
        if alg_id > 8:
            raise RuntimeError("CUDA error: an invalid value was passed to the function")
        return b.t()

    def on_host(values: list[int], dtype: torch.dtype, device: str) -> torch.Tensor:
        return made(values, dtype=dtype)

    made = torch.tensor
    monkeypatch.setattr(torch.backends.cusparselt, "get_max_alg_id", lambda: None)
    assert cusparselt_kernel.KERNEL.configs(problem()) == ("a0",), "without a GPU nobody was asked"
    cusparselt_kernel._algorithms.cache_clear()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "tensor", on_host)
    monkeypatch.setattr(torch, "_cslt_compress", lambda w: w)
    monkeypatch.setattr(torch, "_cslt_sparse_mm", multiply)
    assert cusparselt_kernel.KERNEL.configs(problem()) == tuple(f"a{number}" for number in range(9))
    assert asked == list(range(10))
    cusparselt_kernel._algorithms.cache_clear()


def test_cusparselt_gets_operands_at_multiples_of_16_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[torch.Tensor] = []

    def multiply(blob: torch.Tensor, x: torch.Tensor, bias: torch.Tensor, **rest: object) -> torch.Tensor:
        given.extend((x, bias))
        return x.t()

    monkeypatch.setattr(torch, "_cslt_sparse_mm", multiply)
    held = torch.randn(8 * 32 + 17).bfloat16()
    x, bias = held[1 : 8 * 32 + 1].view(8, 32), held[1:17]
    y = cusparselt_kernel._multiply(x, held, bias, 0)
    assert torch.equal(y, x)
    assert torch.equal(given[1], bias)
    assert all(t.data_ptr() % 16 == 0 for t in given)


def test_cusparselt_packs_no_nan() -> None:
    w = torch.randn(16, 16).bfloat16() * torch.tensor([1, 1, 0, 0] * 4)
    w[3, 4] = float("nan")
    with pytest.raises(KernelError, match="can't give a NaN back bit for bit"):
        cusparselt_kernel.KERNEL.prepack(NMMatrix.from_dense(w, NM(2, 4)), "")


def test_cusparselt_is_asked_as_torch_asks_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library stood in for by its documented meaning: the sparse operand on the left, rows of x padded to 8."""
    asked: list[tuple[int, ...]] = []

    def multiply(blob: torch.Tensor, b: torch.Tensor, bias: Any, transpose_result: bool, alg_id: int) -> torch.Tensor:
        asked.append((*b.shape, alg_id))
        assert transpose_result
        y = blob.float() @ b.float()
        return (y if bias is None else y + bias.float()[:, None]).to(b.dtype).t().contiguous()

    monkeypatch.setattr(torch, "_cslt_compress", lambda w: w.clone())
    monkeypatch.setattr(torch, "_cslt_sparse_mm", multiply)
    w = torch.where(torch.tensor([True, False, True, False] * 8), torch.randn(48, 32), 0.0).bfloat16()
    matrix, bias = NMMatrix.from_dense(w, NM(2, 4)), torch.randn(48).bfloat16()
    packed = cusparselt_kernel.KERNEL.prepack(matrix, "")
    y = cusparselt_kernel._multiply(torch.eye(32).bfloat16()[:5], packed[0], bias, 3)
    assert torch.equal(y, (w[:, :5].float() + bias.float()[:, None]).bfloat16().t())
    assert asked == [(32, 8, 3)]
    back = cusparselt_kernel.KERNEL.unpack(packed, NM(2, 4), (48, 32))
    assert all(torch.equal(back.tensors()[name], t) for name, t in matrix.tensors().items())


@pytest.mark.parametrize("m", [65, 128, 200])
def test_more_rows_than_a_tile_holds_are_taken_tile_by_tile(m: int) -> None:
    """A plan's last choice serves any number of rows, measured or not."""
    x, residual, w = torch.randn(m, 12), torch.randn(m, 7), torch.randn(7, 12)
    sizes = []

    def run(x: torch.Tensor, packed: Any, bias: Any, residual: torch.Tensor, activation: str, entry: Any) -> Any:
        sizes.append(x.shape[0])
        return x @ w.T + residual

    (entry,) = parse_row_table("7x12 float32 2:4 | * cuda_decode 0:1").entries
    y = decode.in_pieces(run, x, [], None, residual, "none", entry)
    torch.testing.assert_close(y, x @ w.T + residual)
    assert sum(sizes) == m
    assert max(sizes) == 64


@pytest.mark.parametrize(("n", "k"), [(0, 64), (64, 0), (0, 0)])
@pytest.mark.parametrize("m", [1, 64, 500])
def test_no_kernel_of_ours_on_a_gpu_is_asked_to_multiply_nothing(n: int, k: int, m: int, with_cuda: None) -> None:
    for op, pattern in ((NM_LINEAR, TWO_FOUR), (NM_LINEAR, NM(1, 8)), (BITMAP_LINEAR, Unstructured())):
        asked = Problem(op.name, pattern, m, n, k, "bfloat16", "cuda", (9, 0), 0.1)
        for name, kernel in op.kernels.items():
            if name.startswith("cuda_"):
                assert kernel.why_not(asked) is not None, name


def test_an_empty_or_boundless_weight_has_no_shape_for_decoding() -> None:
    limits = native.DeviceLimits(132, 227 << 10, 228 << 10)
    for n, k in ((0, 64), (64, 0)):
        with pytest.raises(KernelError, match="found one without rows or columns"):
            native.DecodeShape(1, n, k, 64, 4608, limits, 2, 4)
    with pytest.raises(KernelError, match=r"weights of at most \d+ slabs, found 4096 by 4096"):
        native.DecodeShape(1, 262144, 262144, 64, 4608, limits, 2, 4)
