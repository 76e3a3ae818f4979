"""cuda_sm90 on a Hopper card: right for every shape it takes, the same bits every time; its packing on the GPU."""

from __future__ import annotations

import pytest
import torch
from products import assert_only_stored_columns_spread, drawn, on_every_device, replayed_at_once, twice
from torch import Tensor

from ajour._native import native
from ajour.formats import NMMatrix
from ajour.ops import NM_LINEAR
from ajour.ops.functional import problem_of
from ajour.ops.prepare import prepare, restore
from ajour.terms.pattern import NM
from ajour.terms.problem import ACTIVATIONS
from pruned import bits, truth

TWO_FOUR = NM(2, 4)
KERNEL = NM_LINEAR.kernel("cuda_sm90")
ROWS = (1, 3, 16, 64, 100, 127, 128, 129, 256, 300, 1000, 2048)
SHAPES = ((8, 16), (64, 256), (1000, 1008), (264, 5008), (4096, 512), (512, 4096), (2560, 144))
DTYPES = (torch.bfloat16, torch.float16)


@pytest.fixture(autouse=True)
def hopper() -> None:
    """On another card, or in a build without CUTLASS, the kernel refuses; say why nothing was tested."""
    asked = problem_of(weight(64, 64, torch.bfloat16).to("cuda"), 64)
    if reason := KERNEL.why_not(asked):
        pytest.skip(f"cuda_sm90 was not tested: {reason}")


def weight(n: int, k: int, dtype: torch.dtype, density: float = 0.5) -> NMMatrix:
    return NMMatrix.from_dense(drawn(TWO_FOUR, n, k, dtype, density, skew=density < 0.5), TWO_FOUR)


def call(matrix: NMMatrix, config: str, x: Tensor, *rest: object) -> Tensor:
    packed, table = prepare(NM_LINEAR, matrix.to("cuda"), [(None, "cuda_sm90", config)])
    bias, activation, residual = rest or (None, "none", None)
    return NM_LINEAR.call(x.cuda(), packed, bias, table, activation, residual)  # type: ignore[arg-type]


def default_tile() -> str:
    """The first that was built."""
    tile: str = native.sm90_configs["bfloat16"][0]
    return tile


def aligned(t: Tensor) -> Tensor:
    return t.cuda()


def odd(t: Tensor) -> Tensor:
    """At an address that no instruction for 16 bytes takes."""
    return torch.empty(t.numel() + 1, dtype=t.dtype, device="cuda")[1:].view_as(t).copy_(t)


@pytest.mark.parametrize("m", ROWS)
def test_every_row_count_is_within_the_error_rule_and_repeats_itself(m: int) -> None:
    for turn, (n, k) in enumerate(SHAPES):
        dtype, activation = DTYPES[(turn + m) % 2], ACTIVATIONS[(turn + m) % len(ACTIVATIONS)]
        matrix, x = weight(n, k, dtype, (0.1, 0.5)[turn % 2]), torch.randn(m, k).to(dtype)
        bias = torch.randn(n).to(dtype) if turn % 2 else None
        residual = torch.randn(m, n).to(dtype) if turn % 3 else None
        expected = truth(x, matrix.to_dense(), bias, residual, activation)
        known: dict[tuple[str, str], list[Tensor]] = {}
        for config in KERNEL.configs(problem_of(matrix.to("cuda"), m)):
            packed, table = prepare(NM_LINEAR, matrix.to("cuda"), [(None, "cuda_sm90", config)], known)
            y = twice(NM_LINEAR, x, packed, table, bias, activation, residual)
            expected.check(y, f"{table} m={m} {activation}")


@pytest.mark.parametrize("mode", ["stream", "tiles"])
def test_small_products_are_within_the_error_rule(mode: str) -> None:
    """For the sanitizers too: few blocks, whole and cut tiles, sides that end within one."""
    config = f"{default_tile()} {mode} w1"
    for n, k in ((8, 16), (264, 272)):
        matrix, x = weight(n, k, torch.bfloat16), torch.randn(70, k).bfloat16()
        bias, residual = torch.randn(n).bfloat16(), torch.randn(70, n).bfloat16()
        y = call(matrix, config, x, bias.cuda(), "silu", residual.cuda())
        truth(x, matrix.to_dense(), bias, residual, "silu").check(y.cpu(), f"{config} {n}x{k}")


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
def test_the_epilogue_with_and_without_bias_and_residual(dtype: torch.dtype, activation: str) -> None:
    matrix, x = weight(520, 528, dtype), torch.randn(200, 528).to(dtype)
    for bias in (None, torch.randn(520).to(dtype)):
        for residual in (None, torch.randn(200, 520).to(dtype)):
            expected = truth(x, matrix.to_dense(), bias, residual, activation)
            for place in (aligned, odd):
                given = [None if t is None else place(t) for t in (bias, residual)]
                for mode in ("stream", "tiles"):
                    config = f"{default_tile()} {mode} w1"
                    y = call(matrix, config, x, given[0], activation, given[1])
                    what = f"{config} {activation} {bias is not None} {residual is not None} {place.__name__}"
                    expected.check(y.cpu(), what)


def test_large_negative_and_positive_sums_leave_each_activation_finite() -> None:
    matrix = weight(256, 256, torch.bfloat16)
    x = torch.randn(128, 256).bfloat16() * 40
    for activation in ACTIVATIONS:
        expected = truth(x, matrix.to_dense(), None, None, activation)
        expected.check(call(matrix, "", x, None, activation, None).cpu(), activation)


def test_inf_and_nan_in_x_reach_only_the_outputs_that_store_their_column() -> None:
    matrix = weight(200, 528, torch.bfloat16, 0.3)
    x = torch.randn(19, 528).bfloat16()
    x[0, 3], x[4, 527], x[18, 100] = float("inf"), float("nan"), -float("inf")
    for config in KERNEL.configs(problem_of(matrix.to("cuda"), 19)):
        assert_only_stored_columns_spread(call(matrix, config, x).cpu(), x, matrix)


@pytest.mark.parametrize(("n", "k"), [(8, 16), (104, 400), (4096, 4096), (1000, 2064)])
def test_small_and_large_weights_are_packed_on_the_gpu_as_on_the_cpu(n: int, k: int) -> None:
    matrix = weight(n, k, torch.bfloat16)
    here, there = KERNEL.prepack(matrix, ""), KERNEL.prepack(matrix.to("cuda"), "")
    for mine, other in zip(here, there, strict=True):
        assert torch.equal(bits(mine), bits(other.cpu()))
    back = KERNEL.unpack(there, TWO_FOUR, (n, k))
    for name, tensor in matrix.tensors().items():
        assert torch.equal(bits(back.tensors()[name].cpu()), bits(tensor)), name


def test_two_graphs_replayed_at_once_give_the_bits_of_eager_calls() -> None:
    packed, table = prepare(NM_LINEAR, weight(1024, 4096, torch.bfloat16).to("cuda"), [(None, "cuda_sm90", "")])
    xs = [torch.randn(m, 4096, device="cuda").bfloat16() for m in (96, 300)]
    replayed_at_once(NM_LINEAR, xs, packed, table)


def test_any_stream_and_any_device() -> None:
    on_every_device(weight(704, 800, torch.float16), torch.randn(130, 800).half(), [(None, "cuda_sm90", "")])


def test_small_weights_in_the_place_of_others_are_multiplied_as_themselves() -> None:
    """Maps of a weight are kept by its place and sides: what lies there may change, and the other side of a weight."""
    x = {k: torch.randn(70, k).bfloat16() for k in (128, 256)}
    places = set()
    for turn in range(12):
        n, k = ((256, 256), (512, 128), (512, 256))[turn % 3]
        matrix = weight(n, k, torch.bfloat16)
        packed, table = prepare(NM_LINEAR, matrix.to("cuda"), [(None, "cuda_sm90", "")])
        places.add(packed[0].data_ptr())
        y = NM_LINEAR.call(x[k].cuda(), packed, None, table, "none")
        truth(x[k], matrix.to_dense(), None, None, "none").check(y.cpu(), f"{turn}: {table}")
        del packed
    assert len(places) < 12, "no place was used again: nothing was shown"


def test_rows_of_any_layout() -> None:
    matrix, wide = weight(128, 256, torch.bfloat16), torch.randn(260, 300, device="cuda").bfloat16()
    for x in (wide[:130, :256], wide[::2, 8:264], wide[:3, 3:259], wide[:256, :130].t(), wide[:1, :256].expand(9, 256)):
        expected = truth(x.cpu(), matrix.to_dense(), None, None, "silu")
        expected.check(call(matrix, "", x, None, "silu", None).cpu(), f"{tuple(x.shape)} {x.stride()}")


def test_one_layer_may_decode_by_one_kernel_and_prefill_by_this_one() -> None:
    matrix = weight(512, 1024, torch.bfloat16)
    packed, table = prepare(NM_LINEAR, matrix.to("cuda"), [(64, "cuda_decode", ""), (None, "cuda_sm90", "")])
    for m in (1, 64, 65, 400):
        x = torch.randn(m, 1024).bfloat16()
        y = NM_LINEAR.call(x.cuda(), packed, None, table, "none")
        truth(x, matrix.to_dense(), None, None, "none").check(y.cpu(), f"{table} m={m}")
    assert torch.equal(bits(restore(NM_LINEAR, packed, table).to_dense().cpu()), bits(matrix.to_dense()))
