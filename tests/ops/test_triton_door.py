"""The door to Triton: what it refuses, and that nobody needs Triton who doesn't use it."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ajour.ops import LINEAR_OPS, triton_door
from ajour.ops.triton_door import Tile, parse_tile
from ajour.terms.errors import KernelError
from ajour.terms.pattern import NM, Block, Pattern, Unstructured
from ajour.terms.problem import Problem

SIDE = st.sampled_from([16, 32, 64, 128])
OPS: dict[str, Pattern] = {"nm_linear": NM(2, 4), "block_linear": Block(32, 32), "bitmap_linear": Unstructured()}


def problem(
    op: str,
    pattern: Pattern | None = None,
    m: int = 16,
    dtype: str = "bfloat16",
    device: str = "cuda",
    capability: tuple[int, int] | None = (9, 0),
) -> Problem:
    return Problem(op, pattern or OPS[op], m, 4096, 4096, dtype, device, capability, 0.5)


@given(st.builds(Tile, SIDE, SIDE, SIDE, st.sampled_from([4, 8]), st.integers(1, 5)))
def test_a_tile_is_read_back_from_its_text(tile: Tile) -> None:
    assert parse_tile(str(tile)) == tile


def test_no_configuration_is_the_default_tile() -> None:
    assert parse_tile("") == Tile()


@pytest.mark.parametrize("config", ["m16", "m16 n64 k64 w4", "16 64 64 4 3", "m16 n64 k64 w4 s3 ", "fast"])
def test_another_configuration_is_refused(config: str) -> None:
    with pytest.raises(KernelError, match="is no Triton tile; expected something like 'm16 n64 k64 w4 s3'"):
        parse_tile(config)


@pytest.mark.parametrize("op", OPS)
def test_the_kernels_take_floats_on_a_card_with_tensor_cores(op: str) -> None:
    kernel = LINEAR_OPS[op].kernel("triton")
    for dtype in ("float32", "bfloat16", "float16"):
        for m in (1, 16, 64, 4096):
            for capability in ((8, 0), (8, 6), (9, 0), (10, 0)):
                wanted = problem(op, m=m, dtype=dtype, capability=capability)
                assert kernel.why_not(wanted) is None
                configs = kernel.configs(wanted)
                assert configs
                assert len(set(configs)) == len(configs)
                assert all(parse_tile(" ".join(config.split()[:5])).fits(dtype) for config in configs)


@pytest.mark.parametrize("op", OPS)
def test_the_kernels_say_why_not(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = LINEAR_OPS[op].kernel("triton")
    assert (
        kernel.why_not(problem(op, device="cpu", capability=None)) == "Triton kernels run on CUDA, this layer is on cpu"
    )
    assert "this layer is float64" in str(kernel.why_not(problem(op, dtype="float64")))
    assert "this device has 7.5" in str(kernel.why_not(problem(op, capability=(7, 5))))
    monkeypatch.setattr(triton_door, "find_spec", lambda name: None)
    assert "Triton is not installed" in str(kernel.why_not(problem(op)))


@pytest.mark.parametrize("block", [Block(4, 1), Block(8, 8), Block(16, 8), Block(8, 64)], ids=str)
def test_small_blocks_are_refused(block: Block) -> None:
    reason = LINEAR_OPS["block_linear"].kernel("triton").why_not(problem("block_linear", block))
    assert reason == f"the Triton kernel takes blocks of at least 16x16, this is {block}"


def test_ajour_needs_no_triton() -> None:
    code = (
        "import sys; sys.modules['triton'] = None\n"
        "import torch, ajour.ops.functional as f\n"
        "from ajour.formats import NMMatrix\n"
        "from ajour.terms.pattern import NM\n"
        "w = torch.randn(8, 8).view(8, 2, 4); w[..., ::2] = 0\n"
        "f.linear(torch.randn(3, 8), NMMatrix.from_dense(w.view(8, 8), NM(2, 4)))\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_importing_the_ops_imports_neither_triton_nor_dynamo() -> None:
    code = (
        "import sys, ajour.ops.functional, ajour.ops.gradients\n"
        "assert not {'triton', 'torch._dynamo'} & set(sys.modules), 'imported too much'\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_tile_that_a_card_has_no_room_for_is_a_kernel_error() -> None:
    from triton.runtime.errors import OutOfResources

    from ajour.ops.triton_tile import launch

    class Kernel:
        def __getitem__(self, grid: object) -> object:
            def run(*args: object, **options: object) -> None:
                raise OutOfResources(300000, 232448, "shared memory")

            return run

    with pytest.raises(KernelError, match=r"can't run this tile on cpu: .*shared memory.*plan with another one"):
        launch(Kernel(), 1, torch.ones(1))
