"""Block-sparse layers train: every kernel's gradients against the reference's, eager, compiled and in float64."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from blocks import DTYPES, drawn, live_places
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ajour.formats import BlockMatrix
from ajour.nn import BlockLinear
from ajour.ops import BLOCK_LINEAR, BLOCK_SDDMM, gradients
from ajour.ops.block_gradients import sampled_table, training_configs
from ajour.ops.functional import problem_of
from ajour.ops.prepare import prepare
from ajour.terms.errors import KernelError
from ajour.terms.kernel import config_for
from ajour.terms.pattern import Block
from ajour.terms.problem import Problem

CANONICAL = [name for name, kernel in BLOCK_LINEAR.kernels.items() if kernel.packing == "canonical"]


def gradients_of(matrix: BlockMatrix, kernel: str, x: Tensor, dy: Tensor) -> list[Tensor]:
    packed, table = prepare(BLOCK_LINEAR, matrix, [(None, kernel, "")])
    blocks = packed[0].detach().clone().requires_grad_()
    x, bias = x.clone().requires_grad_(), torch.ones(matrix.shape[0], dtype=x.dtype, requires_grad=True)
    y = gradients.linear(BLOCK_LINEAR, x, [blocks, *packed[1:]], bias, table, "gelu")
    return list(torch.autograd.grad(y, (x, bias, blocks), dy))


@pytest.mark.parametrize("kernel", CANONICAL)
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("pattern", [Block(32, 32), Block(16, 16), Block(5, 7), Block(4, 1)], ids=str)
def test_every_kernel_that_trains_has_the_references_gradients(pattern: Block, dtype: torch.dtype, kernel: str) -> None:
    matrix = drawn(pattern, 97, 131, dtype)
    if BLOCK_LINEAR.kernel(kernel).why_not(problem_of(matrix, 40)) is not None:
        return
    x, dy = torch.randn(5, 8, 131).to(dtype), torch.randn(5, 8, 97).to(dtype)
    exact = gradients_of(matrix.to(dtype=torch.float64), "reference", x.double(), dy.double())
    for found, expected in zip(gradients_of(matrix, kernel, x, dy), exact, strict=True):
        rounding = torch.finfo(dtype).eps * 8 * float(expected.abs().max())
        assert (found.double() - expected).abs().max() < rounding


@pytest.mark.parametrize("pattern", [Block(3, 4), Block(2, 2), Block(6, 1)], ids=str)
def test_second_derivatives_are_the_numerical_ones(pattern: Block) -> None:
    matrix = drawn(pattern, 6, 8, torch.float64)
    packed, table = prepare(BLOCK_LINEAR, matrix, [(None, "reference", "")])
    blocks = packed[0].clone().requires_grad_()
    x = torch.randn(3, 8, dtype=torch.float64, requires_grad=True)

    def call(x: Tensor, blocks: Tensor) -> Tensor:
        return gradients.linear(BLOCK_LINEAR, x, [blocks, *packed[1:]], None, table)

    assert torch.autograd.gradcheck(call, (x, blocks))
    assert torch.autograd.gradgradcheck(call, (x, blocks))


def test_a_frozen_layer_passes_gradients_through_its_panels() -> None:
    matrix = drawn(Block(16, 16), 64, 80, torch.float32)
    layer = BlockLinear(matrix, torch.randn(64))
    assert "cpu 0:2" in layer.kernels
    x = torch.randn(9, 80, requires_grad=True)
    layer(x).square().sum().backward()
    twin = x.detach().clone().requires_grad_()
    nn.functional.linear(twin, matrix.to_dense(), layer.bias).square().sum().backward()
    torch.testing.assert_close(x.grad, twin.grad)


def test_training_changes_live_blocks_as_the_masked_dense_layer_does() -> None:
    matrix = drawn(Block(8, 8), 40, 56, torch.float32)
    layer = BlockLinear(matrix, torch.zeros(40), trainable=True, activation="relu")
    assert "cpu_blocks" in layer.kernels
    w, bias = matrix.to_dense().requires_grad_(), torch.zeros(40, requires_grad=True)
    places = live_places(matrix).float()
    mine = torch.optim.AdamW([p for p in layer.parameters() if p.is_floating_point()], lr=0.01)
    dense = torch.optim.AdamW([w, bias], lr=0.01)
    for _ in range(5):
        x, wanted = torch.randn(16, 56), torch.randn(16, 40)
        for optimizer, y in ((mine, layer(x)), (dense, nn.functional.linear(x, w * places, bias).relu())):
            optimizer.zero_grad()
            nn.functional.mse_loss(y, wanted).backward()
            optimizer.step()
    torch.testing.assert_close(layer.matrix().to_dense(), w.detach() * places, rtol=1e-4, atol=1e-5)
    layer.matrix().validate()


@pytest.mark.unpoisoned
def test_a_training_step_compiles_to_one_graph() -> None:
    torch._dynamo.reset()
    layer = BlockLinear(drawn(Block(8, 8), 24, 40, torch.float32), trainable=True)
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend="aot_eager")
    for m in (3, 8):
        x = torch.randn(m, 40, requires_grad=True)
        inputs = (x, layer.blocks)
        expected = torch.autograd.grad(layer(x).square().sum(), inputs)
        for a, b in zip(torch.autograd.grad(compiled(x).square().sum(), inputs), expected, strict=True):
            torch.testing.assert_close(a, b)


def test_a_table_that_reads_no_canonical_form_cannot_train() -> None:
    with pytest.raises(KernelError, match=r"no kernel of .* reads the canonical form, which alone can be trained"):
        sampled_table("8x8 float32 block 4x4 | * aten 0:1")


def test_a_layer_that_is_trained_on_a_gpu_names_a_configuration_for_each_product() -> None:
    pytest.importorskip("triton", reason="Triton is not installed", exc_type=ImportError)
    problem = Problem("block_linear", Block(64, 128), 8192, 4096, 16384, "bfloat16", "cuda", (9, 0), 0.1)
    kernel = BLOCK_LINEAR.kernel("triton_blocks")
    config = config_for([each[0] for each in training_configs(kernel, problem)])
    turned = replace(problem, pattern=Block(128, 64), n=16384, k=4096)
    sampled = BLOCK_SDDMM.kernel("triton_blocks")
    assert config == " / ".join(each.configs(which)[0] for each, which in
                                ((kernel, problem), (kernel, turned), (sampled, problem)))  # fmt: skip
    _, table = sampled_table(f"4096x16384 bfloat16 block 64x128 | * triton_blocks 0:6 {config}")
    assert table.endswith(f"* triton_blocks 0:5 {config.split(' / ')[2]}")
    on_cpu = replace(problem, device="cpu", capability=None)
    assert training_configs(BLOCK_LINEAR.kernel("cpu_blocks"), on_cpu) == (("",), ("",), ("",))


def test_dw_goes_by_the_configuration_for_its_number_of_rows() -> None:
    few, many = "m16 n64 k64 w4 s3 / m16 n64 k64 w4 s3 / t64 g1 w4 s3 p2", "m64 n64 k64 w4 s3"
    table = f"64x64 bfloat16 block 32x32 | 64 triton_blocks 0:6 {few} | * triton_blocks 0:6 {many}"
    assert sampled_table(table) == (
        0, "64x64 bfloat16 block 32x32 | 64 triton_blocks 0:5 t64 g1 w4 s3 p2 | * triton_blocks 0:5"
    )  # fmt: skip


class Calls(TorchDispatchMode):
    """The names of our ops in the order in which they were called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "ajour":
            self.names.append(func.name().removeprefix("ajour::"))
        return func(*args, **(kwargs or {}))


def test_what_nobody_asks_for_is_not_computed() -> None:
    layer = BlockLinear(drawn(Block(8, 8), 24, 40, torch.float32), trainable=True)
    x = torch.randn(3, 40)
    with Calls() as calls:
        layer(x).sum().backward()
    assert calls.names == ["block_linear", "block_sddmm"]
    layer.requires_grad_(False)
    with Calls() as calls:
        layer(x.requires_grad_()).sum().backward()
    assert calls.names == ["block_linear", "block_linear_t"]
