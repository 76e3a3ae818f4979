"""The decode kernels on a GPU: right for every row count and ragged shape, and the same bits every time."""

from __future__ import annotations

import pytest
import torch
from products import assert_only_stored_columns_spread, drawn, on_every_device, replayed_at_once, twice
from torch import Tensor

from ajour.formats import SparseMatrix
from ajour.ops import LINEAR_OPS
from ajour.ops.functional import op_of, problem_of
from ajour.ops.library import LinearOp
from ajour.ops.nm_linear import slabs
from ajour.ops.prepare import prepare, restore
from ajour.terms.errors import KernelError
from ajour.terms.pattern import NM, Pattern, Unstructured
from ajour.terms.problem import ACTIVATIONS
from pruned import bits, matrix_of, truth

PATTERNS: tuple[Pattern, ...] = (
    *(NM(*p) for p in ((2, 4), (1, 4), (3, 4), (1, 8), (2, 8), (4, 8), (2, 16), (1, 32), (5, 32))),
    Unstructured(),
)
SHAPES = ((64, 256), (1, 1), (65, 33), (1000, 1000), (4096, 512), (130, 5000))
DTYPES = (torch.bfloat16, torch.float16)
GRAPHS = [("nm_linear", NM(2, 4)), ("nm_linear", NM(2, 8)), ("bitmap_linear", Unstructured())]
FEW_ROWS = {NM(2, 4): (("cuda_decode", "lanes c2 s4"),), Unstructured(): (("cuda_gaps", "c3"),)}


def on_gpu(pattern: Pattern, w: Tensor) -> tuple[LinearOp, SparseMatrix]:
    matrix = matrix_of(w, pattern).to("cuda")
    return op_of(matrix), matrix


def kernels(op: LinearOp, matrix: SparseMatrix, m: int) -> list[tuple[list[Tensor], str]]:
    """Packed tensors and table of each GPU kernel that takes m rows, and of each of its configurations in CUDA."""
    problem, found, known = problem_of(matrix, m), [], {}  # type: ignore[var-annotated]
    for name, kernel in op.kernels.items():
        if kernel.packing == "dense" or name == "reference" or kernel.why_not(problem):
            continue
        configs = kernel.configs(problem)
        for config in configs if name.startswith("cuda_") else configs[:1]:
            found.append(prepare(op, matrix, [(None, name, config)], known))
    return found


@pytest.mark.parametrize("m", [*range(1, 18), 24, 31, 32, 33, 48, 63, 64])
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_every_row_count_is_within_the_error_rule_and_repeats_itself(pattern: Pattern, m: int) -> None:
    for turn, (n, k) in enumerate(SHAPES):
        dtype, activation = DTYPES[(turn + m) % 2], ACTIVATIONS[(turn + m) % len(ACTIVATIONS)]
        w, x = drawn(pattern, n, k, dtype, (0.1, 0.5, 0.9)[turn % 3]), torch.randn(m, k).to(dtype)
        bias = torch.randn(n).to(dtype) if turn % 2 else None
        residual = torch.randn(m, n).to(dtype) if turn % 3 else None
        expected = truth(x, w, bias, residual, activation)
        op, matrix = on_gpu(pattern, w)
        found = kernels(op, matrix, m)
        assert any("cuda_decode" in table for _, table in found), f"cuda_decode takes no {pattern} at {m} rows"
        for packed, table in found:
            y = twice(op, x, packed, table, bias, activation, residual)
            expected.check(y, f"{table} m={m} {activation}")


@pytest.mark.parametrize("m", [65, 128, 500])
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_kernels_for_many_rows_are_within_the_error_rule(pattern: Pattern, m: int) -> None:
    for n, k in ((512, 1024), (1000, 1000), (130, 96)):
        w, x, bias = drawn(pattern, n, k, torch.bfloat16), torch.randn(m, k).bfloat16(), torch.randn(n).bfloat16()
        expected = truth(x, w, bias, None, "silu")
        op, matrix = on_gpu(pattern, w)
        for packed, table in kernels(op, matrix, m):
            expected.check(twice(op, x, packed, table, bias, "silu"), f"{table} m={m}")


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_small_problems_for_the_sanitizer(pattern: Pattern) -> None:
    """Shared tiles, a ragged end, unaligned rows of x: small enough for tools that run a hundred times slower."""
    w = drawn(pattern, 130, 300, torch.bfloat16)
    op, matrix = on_gpu(pattern, w)
    for kernel, config in (("cuda_decode", "c1 s3"), *FEW_ROWS.get(pattern, ())):
        packed, table = prepare(op, matrix, [(None, kernel, config)])
        for m, width in ((9, 300), (3, 304), (40, 304)):
            x = torch.randn(m, width, device="cuda").bfloat16()[:, :300]
            y = op.call(x, packed, None, table, "silu")
            truth(x.cpu(), w, None, None, "silu").check(y.cpu(), f"{pattern} {table} {tuple(x.shape)} {x.stride()}")


@pytest.mark.parametrize("pattern", [NM(2, 4), NM(2, 8), NM(3, 16), Unstructured()], ids=str)
def test_inf_and_nan_in_x_reach_only_the_outputs_that_store_their_column(pattern: Pattern) -> None:
    op, matrix = on_gpu(pattern, drawn(pattern, 200, 520, torch.bfloat16))
    x = torch.randn(19, 520).bfloat16()
    x[0, 3], x[4, 519], x[18, 100] = float("inf"), float("nan"), -float("inf")
    for kernel, config in (("cuda_decode", ""), *FEW_ROWS.get(pattern, ())):
        packed, table = prepare(op, matrix, [(None, kernel, config)])
        y = op.call(x.cuda(), packed, None, table, "none").cpu()
        assert_only_stored_columns_spread(y, x, matrix.to("cpu"))


@pytest.mark.parametrize(("name", "pattern"), GRAPHS, ids=str)
def test_two_graphs_replayed_at_once_give_the_bits_of_eager_calls(name: str, pattern: Pattern) -> None:
    op, matrix = on_gpu(pattern, drawn(pattern, 3000, 4096, torch.bfloat16, 0.2))
    assert op is LINEAR_OPS[name]
    xs = [torch.randn(m, 4096, device="cuda").bfloat16() for m in (1, 17)]
    replayed_at_once(op, xs, *prepare(op, matrix, [(None, "cuda_decode", "")]))
    for kernel, config in FEW_ROWS.get(pattern, ()):
        few = [torch.randn(m, 4096, device="cuda").bfloat16() for m in (1, 3)]
        replayed_at_once(op, few, *prepare(op, matrix, [(None, kernel, config)]))


def test_counters_survive_eager_calls_between_captures_replays_and_the_end_of_a_graph() -> None:
    """A stream's calls share counters, a captured call has its own, and those of a graph that ended are used again."""
    op, matrix = on_gpu(NM(2, 4), drawn(NM(2, 4), 3000, 4096, torch.bfloat16))
    packed, table = prepare(op, matrix, [(None, "cuda_decode", "")])
    x = torch.randn(5, 4096, device="cuda").bfloat16()
    expected = op.call(x, packed, None, table, "none")
    side = torch.cuda.Stream()
    for _ in range(3):
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = op.call(x, packed, None, table, "none")
        for _ in range(5):
            with torch.cuda.stream(side):
                graph.replay()
            eager = [op.call(x, packed, None, table, "none") for _ in range(3)]
            torch.cuda.synchronize()
            assert all(torch.equal(bits(each), bits(expected)) for each in (y, *eager))
        del graph


@pytest.mark.parametrize("pattern", [p for p in PATTERNS if isinstance(p, NM)], ids=str)
def test_small_slabs_packed_on_the_device_are_those_of_the_host(pattern: NM) -> None:
    for n, k in ((1, 1), (65, 300), (192, 320)):
        on_host = matrix_of(drawn(pattern, n, k, torch.float16), pattern)
        matrix = on_host.to("cuda")
        (ours,), (device,) = slabs.prepack(on_host, ""), slabs.prepack(matrix, "")
        assert torch.equal(bits(device.cpu()), bits(ours))
        back = slabs.unpack([device], pattern, (n, k))
        for name, tensor in matrix.tensors().items():
            assert torch.equal(bits(back.tensors()[name]), bits(tensor)), name


@pytest.mark.parametrize(("name", "pattern"), GRAPHS, ids=str)
def test_any_stream_and_any_device(name: str, pattern: Pattern) -> None:
    matrix = matrix_of(drawn(pattern, 700, 800, torch.float16), pattern)
    assert op_of(matrix) is LINEAR_OPS[name]
    on_every_device(matrix, torch.randn(5, 800).half(), [(None, "cuda_decode", "")])


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_the_packed_form_gives_the_matrix_back(pattern: Pattern) -> None:
    op, matrix = on_gpu(pattern, drawn(pattern, 192, 320, torch.bfloat16))
    for packed, table in kernels(op, matrix, 8):
        back = restore(op, packed, table)
        for part, tensor in matrix.tensors().items():
            assert torch.equal(bits(back.tensors()[part]), bits(tensor)), f"{table}: {part}"


@pytest.mark.parametrize(("name", "pattern"), GRAPHS, ids=str)
def test_more_rows_than_it_is_for_are_right_too(name: str, pattern: Pattern) -> None:
    """A plan's last choice serves any number of rows, measured or not."""
    w = drawn(pattern, 200, 320, torch.bfloat16)
    packed, table = prepare(LINEAR_OPS[name], on_gpu(pattern, w)[1], [(None, "cuda_decode", "")])
    for m in (65, 128, 200):
        x, residual = torch.randn(m, 320).bfloat16(), torch.randn(m, 200).bfloat16()
        y = LINEAR_OPS[name].call(x.cuda(), packed, None, table, "relu", residual.cuda())
        truth(x, w, None, residual, "relu").check(y.cpu(), f"{pattern} m={m}")


@pytest.mark.parametrize(
    ("pattern", "kernel"),
    [(NM(2, 4), "cuda_decode"), (Unstructured(), "cuda_decode"), (Unstructured(), "cuda_gaps")],
    ids=str,
)
def test_slabs_that_are_not_aligned_are_an_error_and_no_launch(pattern: Pattern, kernel: str) -> None:
    op, matrix = on_gpu(pattern, drawn(pattern, 64, 64, torch.bfloat16, 0.2))
    (slabs, *rest), table = prepare(op, matrix, [(None, kernel, "")])
    odd = torch.empty(slabs.numel() + 1, dtype=torch.bfloat16, device="cuda")[1:].copy_(slabs)
    with pytest.raises(KernelError, match="aligned to 16 bytes"):
        op.call(torch.randn(1, 64, device="cuda").bfloat16(), [odd, *rest], None, table, "none")
    torch.cuda.synchronize()
