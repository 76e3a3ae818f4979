"""The border of the ops: what torch knows of them, what they refuse, and how they meet compilers and autocast."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from ajour.formats import SparseMatrix
from ajour.ops import LINEAR_OPS, gradients
from ajour.ops.functional import op_of, problem_of
from ajour.ops.prepare import prepare
from ajour.terms.errors import AjourError, KernelError, PlanError
from ajour.terms.pattern import NM, Block, Dense, Pattern, Unstructured
from pruned import keep_mask, matrix_of, truth

PATTERNS: tuple[Pattern, ...] = (NM(2, 4), Block(8, 4), Unstructured(), Dense())
SHAPE = (20, 33)


def some_matrix(pattern: Pattern, dtype: torch.dtype = torch.float32) -> SparseMatrix:
    n, k = SHAPE
    return matrix_of(torch.where(keep_mask(pattern, n, k), torch.randn(n, k), 0.0).to(dtype), pattern)


def plain_kernel(pattern: Pattern) -> str:
    return "aten" if pattern == Dense() else "reference"


class Layer(nn.Module):
    """The smallest module that calls an op the way ajour's modules do."""

    def __init__(self, pattern: Pattern, trainable: bool = False, kernel: str | None = None) -> None:
        super().__init__()
        matrix = some_matrix(pattern)
        self.op = op_of(matrix)
        packed, self.kernels = prepare(self.op, matrix, [(None, kernel or plain_kernel(pattern), "")])
        self.count = len(packed)
        for place, tensor in enumerate(packed):
            if trainable and place == 0:
                self.register_parameter("packed0", nn.Parameter(tensor))
            else:
                self.register_buffer(f"packed{place}", tensor)
        self.bias = nn.Parameter(torch.randn(SHAPE[0]))

    def forward(self, x: Tensor) -> Tensor:
        packed = [getattr(self, f"packed{place}") for place in range(self.count)]
        return gradients.linear(self.op, x, packed, self.bias, self.kernels, "gelu")


def ajour_nodes(graph: torch.fx.Graph) -> list[str]:
    return [str(node.target) for node in graph.nodes if str(node.target).startswith("ajour.")]


@pytest.mark.unpoisoned
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("shape", [(7,), (2, 0, 3)], ids=str)
def test_opcheck_passes(pattern: Pattern, shape: tuple[int, ...]) -> None:
    matrix = some_matrix(pattern)
    op = op_of(matrix)
    x, bias, residual = torch.randn(*shape, SHAPE[1]), torch.randn(SHAPE[0]), torch.randn(*shape, SHAPE[0])
    for name, kernel in op.kernels.items():
        if kernel.why_not(problem_of(matrix, 8)) is not None:
            continue
        packed, table = prepare(op, matrix, [(None, name, "")])
        torch.library.opcheck(op.registered, (x, packed, bias, table, "relu", residual))
        torch.library.opcheck(op.registered, (x, packed, None, table, "none"))
        torch.library.opcheck(op.weight, (packed, table))


@pytest.mark.unpoisoned
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_compile_is_one_graph_with_one_node_for_any_number_of_rows(pattern: Pattern) -> None:
    torch._dynamo.reset()
    layer, graphs = Layer(pattern), []

    def backend(module: torch.fx.GraphModule, inputs: list[Tensor]) -> torch.fx.GraphModule:
        graphs.append(module.graph)
        return module

    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend=backend)
    with torch.no_grad():
        for m in (5, 2, 64):
            x = torch.randn(m, SHAPE[1])
            assert torch.equal(compiled(x), layer(x))
    assert [ajour_nodes(graph) for graph in graphs] == [[f"ajour.{layer.op.name}.default"]]


@pytest.mark.unpoisoned
@pytest.mark.parametrize("trainable", [False, True], ids=["frozen", "trainable"])
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_compiled_gradients_are_the_eager_ones(pattern: Pattern, trainable: bool) -> None:
    torch._dynamo.reset()
    layer = Layer(pattern, trainable)
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend="aot_eager")
    for m in (5, 2):
        x = torch.randn(m, SHAPE[1], requires_grad=True)
        dy = torch.randn(m, SHAPE[0])
        inputs = (x, *layer.parameters())
        expected = torch.autograd.grad(layer(x), inputs, dy)
        found = torch.autograd.grad(compiled(x), inputs, dy)
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.unpoisoned
@pytest.mark.parametrize("with_grad", [False, True], ids=["no_grad", "grad"])
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_export_with_dynamic_rows_shows_one_node(pattern: Pattern, with_grad: bool) -> None:
    layer = Layer(pattern)
    rows = torch.export.Dim("rows", min=1, max=4096)
    with torch.set_grad_enabled(with_grad):
        exported = torch.export.export(layer, (torch.randn(5, SHAPE[1]),), dynamic_shapes=({0: rows},))
    assert ajour_nodes(exported.graph) == [f"ajour.{layer.op.name}.default"]
    for m in (1, 64):
        x = torch.randn(m, SHAPE[1])
        torch.testing.assert_close(exported.module()(x), layer(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_autocast_gives_the_dtype_that_torch_linear_gives(pattern: Pattern, dtype: torch.dtype) -> None:
    matrix = some_matrix(pattern, dtype)
    op, w = op_of(matrix), matrix.to_dense()
    packed, table = prepare(op, matrix, [(None, plain_kernel(pattern), "")])
    residual = torch.randn(6, SHAPE[0], dtype=dtype)
    for given in (dtype, torch.bfloat16) if dtype != torch.float64 else (dtype,):
        x, bias = torch.randn(6, SHAPE[1], dtype=given), torch.randn(SHAPE[0], dtype=dtype)
        with torch.autocast("cpu", torch.bfloat16):
            expected = nn.functional.linear(x, w, bias)
            found = [
                op.call(x, packed, bias, table, "none"),
                gradients.linear(op, x.requires_grad_(), packed, bias, table, residual=residual),
            ]
        for y in found:
            assert y.dtype == expected.dtype
        torch.testing.assert_close(found[0], expected, rtol=0.05, atol=0.2)


def test_autocast_gradients_have_the_dtypes_of_their_tensors() -> None:
    layer = Layer(NM(2, 4), trainable=True)
    x = torch.randn(6, SHAPE[1], requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    y.float().square().sum().backward()
    for tensor in (x, *layer.parameters()):
        assert tensor.grad is not None
        assert tensor.grad.dtype == torch.float32


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_any_leading_shape_and_no_rows_give_the_shape_that_torch_linear_gives(pattern: Pattern) -> None:
    matrix = some_matrix(pattern)
    op, w, bias = op_of(matrix), matrix.to_dense(), torch.randn(SHAPE[0])
    packed, table = prepare(op, matrix, [(None, plain_kernel(pattern), "")])
    for shape in ((), (0,), (1,), (4,), (2, 0), (2, 3), (2, 1, 2, 2)):
        x, residual = torch.randn(*shape, SHAPE[1]), torch.randn(*shape, SHAPE[0])
        truth(x, w, bias, residual, "silu").check(op.call(x, packed, bias, table, "silu", residual), str(shape))


@pytest.mark.parametrize("sides", [(0, 5), (5, 0), (0, 0)], ids=str)
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_a_weight_without_elements_gives_what_torch_linear_gives(pattern: Pattern, sides: tuple[int, int]) -> None:
    n, k = sides
    matrix = matrix_of(torch.randn(n, k), pattern)
    op, bias = op_of(matrix), torch.randn(n)
    packed, table = prepare(op, matrix, [(None, plain_kernel(pattern), "")])
    x = torch.randn(2, 3, k)
    expected = nn.functional.relu(nn.functional.linear(x, torch.zeros(n, k), bias))
    assert torch.equal(op.call(x, packed, bias, table, "relu"), expected)


X = torch.randn(4, SHAPE[1])
REFUSALS = {
    "columns": ({"x": torch.randn(4, 32)}, r"x has shape \(4, 32\), the weight 20x33 needs \[\.\.\., 33\]"),
    "no dimensions": ({"x": torch.tensor(1.0)}, r"x has shape \(\)"),
    "dtype": ({"x": X.half()}, "x is float16, the weight is float32; convert one of them"),
    "bias shape": ({"bias": torch.randn(19)}, r"bias is torch.float32 \(19,\), expected torch.float32 \(20,\)"),
    "bias dtype": ({"bias": torch.randn(20).half()}, r"bias is torch.float16 \(20,\)"),
    "residual shape": ({"residual": torch.randn(20)}, r"residual is torch.float32 \(20,\), expected .* \(4, 20\)"),
    "residual dtype": ({"residual": torch.randn(4, 20).half()}, "residual is torch.float16"),
    "activation": ({"activation": "tanh"}, "activation 'tanh' is not one of none, relu, gelu, gelu_tanh, silu"),
    "too few tensors": ({"packed": []}, "packed tensors, found 0"),
    "kernel": ({"kernels": "20x33 float32 2:4 | * warp 0:2"}, "nm_linear has no kernel 'warp'; it has .*reference"),
    "weight dtype": ({"kernels": "20x33 int8 2:4 | * reference 0:2"}, "nm_linear has no weights of dtype 'int8'"),
    "table": ({"kernels": "20x33 float32 2:4"}, "is no row table|limits must rise"),
}


@pytest.mark.parametrize("change", REFUSALS)
def test_a_wrong_call_is_refused_with_a_sentence(change: str) -> None:
    matrix = some_matrix(NM(2, 4))
    packed, table = prepare(op_of(matrix), matrix, [(None, "reference", "")])
    call = {"x": X, "packed": packed, "bias": None, "kernels": table, "activation": "none", "residual": None}
    wrong, sentence = REFUSALS[change]
    with pytest.raises((KernelError, PlanError), match=sentence):
        op_of(matrix).call(**(call | wrong))
    meta = {name: t.to("meta") if isinstance(t, Tensor) else t for name, t in (call | wrong).items()}
    with pytest.raises(AjourError, match=sentence):  # a compiler hears the same
        op_of(matrix).call(**meta)


def test_an_unknown_kernel_is_refused_before_anything_is_packed() -> None:
    with pytest.raises(KernelError, match="nm_linear has no kernel 'warp'"):
        prepare(LINEAR_OPS["nm_linear"], some_matrix(NM(2, 4)), [(None, "warp", "")])


def test_no_kernel_means_an_error_with_every_refusal() -> None:
    op = LINEAR_OPS["dense_linear"]
    problem = problem_of(some_matrix(Dense()), 4)
    strict = {name: replace(kernel, why_not=lambda problem: "it is Sunday") for name, kernel in op.kernels.items()}
    with pytest.raises(KernelError, match=r"dense_linear has no kernel for .*onednn: it is Sunday; aten: it is Sunday"):
        replace(op, kernels=strict).first(problem)
