"""Block-sparse layers on a GPU: every configuration forward, transposed and for dW, in graphs, and a training step."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import ajour
from ajour.formats import BlockMatrix
from ajour.nn import BlockLinear
from ajour.ops import BLOCK_LINEAR, BLOCK_SDDMM
from ajour.ops.block_linear.op import TRANSPOSED
from ajour.ops.functional import problem_of
from ajour.ops.prepare import prepare
from ajour.terms.pattern import Block
from ajour.terms.problem import ACTIVATIONS
from pruned import bits, keep_mask, truth

BLOCKS = (Block(16, 16), Block(32, 32), Block(64, 64), Block(128, 128), Block(128, 16), Block(32, 64), Block(48, 80))
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
ROWS = (1, 7, 34, 63, 101, 131, 515)


def drawn(pattern: Block, n: int, k: int, dtype: torch.dtype, density: float = 0.3, skew: bool = False) -> BlockMatrix:
    w = torch.where(keep_mask(pattern, n, k, density, skew), torch.randn(n, k), 0.0)
    return BlockMatrix.from_dense(w.to(dtype), pattern)


def every_config(matrix: BlockMatrix, m: int) -> list[tuple[list[Tensor], str, str]]:
    there = matrix.to("cuda")
    problem = problem_of(there, m)
    configs = BLOCK_LINEAR.kernel("triton").configs(problem)
    return [(*prepare(BLOCK_LINEAR, there, [(None, "triton", config)]), config) for config in configs]


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("pattern", BLOCKS, ids=str)
def test_every_configuration_is_within_the_error_rule_both_ways(pattern: Block, dtype: torch.dtype) -> None:
    for turn, m in enumerate(ROWS):
        matrix = drawn(pattern, 520, 776, dtype, skew=m % 2 == 1)
        w, activation = matrix.to_dense(), ACTIVATIONS[turn % len(ACTIVATIONS)]
        x, dy, bias = (torch.randn(shape).to(dtype) for shape in ((m, 776), (m, 520), (520,)))
        forward = truth(x, w, bias, None, activation)
        backward = truth(dy, w.T.contiguous(), None, None, "none")
        for packed, table, config in every_config(matrix, m):
            y = BLOCK_LINEAR.call(x.cuda(), packed, bias.cuda(), table, activation)
            forward.check(y.cpu(), f"{config} m={m} {activation}")
            again = BLOCK_LINEAR.call(x.cuda(), packed, bias.cuda(), table, activation)
            assert torch.equal(bits(y), bits(again)), f"{config} m={m}: two runs differ"
            backward.check(TRANSPOSED(dy.cuda(), packed, table).cpu(), f"{config} m={m} transposed")


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("pattern", BLOCKS, ids=str)
def test_sddmm_small_and_shared_is_within_the_error_rule(pattern: Block, dtype: torch.dtype) -> None:
    for m in (5, 1000):
        matrix = drawn(pattern, 200, 264, dtype)
        index = [t.cuda() for t in list(matrix.tensors().values())[1:]]
        table = f"200x264 {str(dtype)[6:]} {pattern} | * triton_blocks 0:5"
        dy, x = torch.randn(m, 200).to(dtype), torch.randn(m, 264).to(dtype)
        ones = BlockMatrix(
            {**matrix.tensors(), "blocks": torch.ones_like(matrix.values)}, pattern, (200, 264)
        ).to_dense()
        expected = truth(dy.T.contiguous(), x.T.contiguous(), None, None, "none")
        expected.y = expected.y * ones
        blocks = BLOCK_SDDMM.call(dy.cuda(), x.cuda(), index, table)
        found = BlockMatrix({**matrix.tensors(), "blocks": blocks.cpu()}, pattern, (200, 264))
        found.validate()
        expected.check(found.to_dense(), f"{pattern} m={m}")
        assert torch.equal(bits(blocks), bits(BLOCK_SDDMM.call(dy.cuda(), x.cuda(), index, table)))
        total = torch.zeros_like(blocks, dtype=torch.float32)
        for _ in range(2):
            BLOCK_SDDMM.add(total, dy.cuda(), x.cuda(), index, table)
        torch.testing.assert_close(total, 2 * blocks.float(), rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("pattern", [Block(32, 32), Block(64, 64)], ids=str)
def test_a_small_layer_replays_in_a_cuda_graph(pattern: Block) -> None:
    matrix = drawn(pattern, 256, 256, torch.bfloat16)
    for packed, table, config in every_config(matrix, 33):
        x = torch.randn(33, 256, device="cuda").bfloat16()
        BLOCK_LINEAR.call(x, packed, None, table, "none")
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = BLOCK_LINEAR.call(x, packed, None, table, "none")
        x.copy_(torch.randn(33, 256))
        graph.replay()
        torch.cuda.synchronize()
        assert torch.equal(bits(y), bits(BLOCK_LINEAR.call(x, packed, None, table, "none"))), config


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=lambda d: str(d)[6:])
def test_a_small_layer_trains_as_its_dense_twin(dtype: torch.dtype) -> None:
    matrix = drawn(Block(32, 32), 96, 160, dtype)
    layer = BlockLinear(matrix.to("cuda"), torch.randn(96).to("cuda", dtype), trainable=True, activation="gelu")
    assert "triton_blocks" in layer.kernels
    x = torch.randn(3, 21, 160).to("cuda", dtype).requires_grad_()
    layer(x).sum().backward()
    w = matrix.to_dense().cuda().requires_grad_()
    twin = x.detach().clone().requires_grad_()
    torch.nn.functional.gelu(torch.nn.functional.linear(twin, w, layer.bias.detach())).sum().backward()
    places = BlockMatrix({**matrix.tensors(), "blocks": layer.blocks.grad.cpu()}, matrix.pattern, (96, 160)).to_dense()
    live = (matrix.to_dense() != 0).to(dtype)
    tolerance = {"rtol": 2e-2, "atol": 5e-2} if dtype == torch.bfloat16 else {"rtol": 1e-3, "atol": 1e-3}
    torch.testing.assert_close(x.grad, twin.grad, **tolerance)
    torch.testing.assert_close(places, w.grad.cpu() * live, **tolerance)


def test_a_plan_for_training_names_a_configuration_for_each_product_and_the_layer_runs_them() -> None:
    dense = torch.nn.Linear(256, 512).to("cuda", torch.bfloat16)
    dense.weight.data = drawn(Block(64, 64), 512, 256, torch.bfloat16).to_dense().cuda()
    model = torch.nn.Sequential(dense)
    plan = ajour.plan(model, None, rows=[300], margin=float("-inf"), trainable=True, progress=False)
    (entry,) = plan["0"].kernels
    assert entry.kernel == "triton_blocks"
    assert len(entry.config.split(" / ")) == 3
    x = torch.randn(300, 256, device="cuda").bfloat16().requires_grad_()
    expected = torch.autograd.grad(dense(x).square().sum(), x)[0]
    layer = ajour.convert(model, plan, trainable=True)[0]
    assert layer.kernels.endswith(entry.config)
    found, dw = torch.autograd.grad(layer(x).square().sum(), (x, layer.blocks))
    torch.testing.assert_close(found, expected, rtol=2e-2, atol=5e-2)
    assert dw.isfinite().all()
