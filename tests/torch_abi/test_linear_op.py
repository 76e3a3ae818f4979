"""The linear ops as the compiled part implements them: the same results and refusals as in Python, and without it."""

from __future__ import annotations

import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.profiler import ProfilerActivity, profile

from ajour.nn import NMLinear
from ajour.ops import LINEAR_OPS
from ajour.ops.calls import count_calls
from ajour.ops.compiled import CompiledRun
from ajour.ops.functional import op_of, problem_of
from ajour.ops.library import LinearOp
from ajour.ops.prepare import prepare
from ajour.terms.errors import KernelError
from ajour.terms.pattern import NM, Block, Pattern, Unstructured
from ajour.terms.problem import ACTIVATIONS
from pruned import keep_mask, matrix_of

N, K = 20, 48
PATTERNS: tuple[Pattern, ...] = (NM(2, 4), Block(4, 4), Unstructured())


def some_matrix(pattern: Pattern, dtype: torch.dtype = torch.float32, n: int = N, k: int = K) -> Any:
    return matrix_of(torch.where(keep_mask(pattern, n, k), torch.randn(n, k), 0.0).to(dtype), pattern)


def compiled_names(op: LinearOp) -> list[str]:
    return [name for name, kernel in op.kernels.items() if isinstance(kernel.run, CompiledRun)]


def ops_seen(op: LinearOp, *args: Any) -> set[str]:
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        op.call(*args)
    return {event.key for event in seen.key_averages() if event.key.startswith("ajour::")}


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_a_known_table_is_served_without_python(pattern: Pattern) -> None:
    matrix = some_matrix(pattern)
    op = op_of(matrix)
    assert compiled_names(op)
    for name in compiled_names(op):
        packed, table = prepare(op, matrix, [(None, name, "")])
        args = (torch.randn(2, 3, K), packed, torch.randn(N), table, "gelu", torch.randn(2, 3, N))
        op.call(*args)
        assert ops_seen(op, *args) == {f"ajour::{op.name}_compiled"}
        transposed = torch.randn(K, 3).T  # its columns are no neighbours: Python copies it
        assert ops_seen(op, transposed, *args[1:5]) == {f"ajour::{op.name}", f"ajour::{op.name}_compiled"}


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_rows_that_only_python_serves_never_ask_the_compiled_part(pattern: Pattern) -> None:
    matrix = some_matrix(pattern)
    op = op_of(matrix)
    packed, table = prepare(op, matrix, [(None, "reference", "")])
    for _ in range(2):
        assert ops_seen(op, torch.randn(2, K), packed, None, table, "none") == {f"ajour::{op.name}"}


def test_these_ops_have_kernels_that_need_no_python() -> None:
    assert [name for name, op in LINEAR_OPS.items() if compiled_names(op)] == [
        "nm_linear",
        "block_linear",
        "bitmap_linear",
        "split_linear",
    ]


@st.composite
def calls(draw: Any) -> dict[str, Any]:
    return {
        "pattern": draw(st.sampled_from(PATTERNS)),
        "dtype": draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64])),
        "leading": draw(st.lists(st.integers(0, 3), min_size=0, max_size=3)),
        "layout": draw(st.sampled_from(["contiguous", "transposed", "sliced", "expanded"])),
        "bias": draw(st.sampled_from(["none", "contiguous", "strided"])),
        "residual": draw(st.sampled_from(["none", "contiguous", "transposed"])),
        "activation": draw(st.sampled_from(ACTIVATIONS)),
        "limit": draw(st.sampled_from([None, 1, 4])),
    }


def laid_out(t: Tensor, layout: str) -> Tensor:
    if layout == "transposed" and t.dim() > 1:
        return t.transpose(-1, -2).contiguous().transpose(-1, -2)
    if layout == "sliced":
        wide = torch.full((*t.shape[:-1], t.shape[-1] + 3), float("nan"), dtype=t.dtype)
        wide[..., 1:-2] = t
        return wide[..., 1:-2]
    if layout == "expanded" and t.dim() > 1 and t.shape[0]:
        return t[:1].expand_as(t)
    return t


@given(call=calls())
def test_what_it_computes_is_what_python_computes(call: dict[str, Any]) -> None:
    matrix = some_matrix(call["pattern"], call["dtype"])
    op, dtype = op_of(matrix), call["dtype"]
    name = compiled_names(op)[0] if op.kernels[compiled_names(op)[0]].why_not(problem_of(matrix, 4)) is None else None
    choices = [(call["limit"], name or "reference", ""), (None, "reference", "")]
    packed, table = prepare(op, matrix, choices if call["limit"] else choices[:1])
    x = laid_out(torch.randn(*call["leading"], K).to(dtype), call["layout"])
    bias = {"none": None, "contiguous": torch.randn(N), "strided": torch.randn(2 * N)[::2]}[call["bias"]]
    residual = None if call["residual"] == "none" else laid_out(torch.randn(*x.shape[:-1], N), call["residual"])
    args = (
        x, packed, bias if bias is None else bias.to(dtype), table, call["activation"],
        residual if residual is None else residual.to(dtype),
    )  # fmt: skip
    expected = op.registered(*args)
    torch.testing.assert_close(op.call(*args), expected, rtol=0, atol=0)


def test_refusals_are_those_of_python() -> None:
    matrix = some_matrix(NM(2, 4))
    op = op_of(matrix)
    packed, table = prepare(op, matrix, [(None, "cpu", "")])
    x = torch.randn(2, K)
    op.call(x, packed, None, table, "none")
    wrong: list[tuple[tuple[Any, ...], str]] = [
        ((torch.randn(2, K + 1), packed, None, table, "none"), f"x has shape .2, {K + 1}., the weight {N}x{K} needs"),
        ((x.double(), packed, None, table, "none"), "x is float64, the weight is float32"),
        ((x, packed[:1], None, table, "none"), "reads 2 packed tensors, found 1"),
        ((x, packed, torch.randn(N + 1), table, "none"), "bias is torch.float32 .21,., expected"),
        ((x, packed, None, table, "tanh"), "activation 'tanh' is not one of"),
        ((x, packed, None, table, "none", torch.randn(3, N)), "residual is torch.float32 .3, 20., expected"),
        (
            (x, packed, None, table.replace("0:2", "0:1"), "none"),
            "cpu reads 2 packed tensors, its row table gives it 1",
        ),
        ((x, [t.to("meta") for t in packed], None, table, "none"), "x is on cpu, another tensor on meta"),
    ]
    for args, text in wrong:
        for _ in range(2):
            with pytest.raises(KernelError, match=text):
                op.call(*args)
    assert op.call(x, packed, None, table, "none").shape == (2, N)


def test_a_traced_model_keeps_its_weights_from_run_to_run() -> None:
    matrix = some_matrix(NM(2, 4))
    layer = NMLinear(matrix, torch.randn(N)).eval()
    x = torch.randn(2, K)
    expected = layer(x)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        traced = torch.jit.freeze(torch.jit.trace(layer, x))
        for _ in range(3):
            torch.testing.assert_close(traced(x), expected)


def test_who_watches_sees_the_public_op() -> None:
    matrix = some_matrix(NM(2, 4))
    op = op_of(matrix)
    packed, table = prepare(op, matrix, [(None, "cpu", "")])
    x = torch.randn(2, K)
    op.call(x, packed, None, table, "none")
    with count_calls() as seen:
        op.call(x, packed, None, table, "none")
    assert seen.kernels == {("nm_linear", "cpu"): 1}
    graph = make_fx(lambda x: op.call(x, packed, None, table, "none"))(x).graph
    assert [str(node.target) for node in graph.nodes if node.op == "call_function"] == ["ajour.nm_linear.default"]


def test_under_autocast_a_known_table_follows_its_rule() -> None:
    matrix = some_matrix(NM(2, 4))
    op = op_of(matrix)
    packed, table = prepare(op, matrix, [(None, "cpu", "")])
    x = torch.randn(2, K)
    y = op.call(x, packed, None, table, "none")
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(op.call(x, packed, None, table, "none"), y.bfloat16())


def test_an_interrupt_is_an_interrupt(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = some_matrix(NM(2, 4))
    op = op_of(matrix)
    packed, table = prepare(op, matrix, [(None, "reference", "")])

    def interrupted(*args: Any) -> Tensor:
        raise KeyboardInterrupt

    monkeypatch.setitem(op.kernels, "reference", replace(op.kernels["reference"], run=interrupted))
    with pytest.raises(KeyboardInterrupt):
        op.call(torch.randn(2, K), packed, None, table, "none")


def test_calls_keep_no_tensor_alive() -> None:
    matrix = some_matrix(NM(2, 4))
    op = op_of(matrix)
    packed, table = prepare(op, matrix, [(None, "cpu", "")])
    x, bias, residual = torch.randn(2, K), torch.randn(N), torch.randn(2, N)
    held = [x, bias, residual, *packed]

    def uses() -> list[int]:
        return [torch._C._storage_Use_Count(t.untyped_storage()._cdata) for t in held]

    before = uses()
    for _ in range(5):
        y = op.call(x, packed, bias, table, "relu", residual)
        op.call(laid_out(x, "transposed"), packed, bias, table, "relu", residual)  # through Python
        with pytest.raises(KernelError):
            op.call(x, packed, bias, table, "tanh", residual)
    assert uses() == before
    assert torch._C._storage_Use_Count(y.untyped_storage()._cdata) == torch._C._storage_Use_Count(
        torch.empty(1).untyped_storage()._cdata
    )


def test_threads_that_bring_new_tables_get_their_own_results() -> None:
    def work(seed: int) -> bool:
        generator = torch.Generator().manual_seed(seed)
        same = True
        for size in range(4, 40, 4):
            weight = torch.randn(size, 4 * (seed + 1), generator=generator) * keep_mask(NM(2, 4), size, 4 * (seed + 1))
            matrix = matrix_of(weight, NM(2, 4))
            op = op_of(matrix)
            packed, table = prepare(op, matrix, [(None, "cpu", "")])
            x = torch.randn(3, 4 * (seed + 1), generator=generator)
            same &= torch.equal(op.call(x, packed, None, table, "none"), op.registered(x, packed, None, table, "none"))
        return same

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(8)))
