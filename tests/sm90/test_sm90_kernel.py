"""cuda_sm90 before it is launched: what it refuses, its configurations, and operands as TMA wants them."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from ajour import _native
from ajour.diagnosis import machine
from ajour.formats import NMMatrix
from ajour.ops import NM_LINEAR, sm90
from ajour.terms.errors import KernelError
from ajour.terms.pattern import NM, Pattern
from ajour.terms.problem import Problem
from ajour.terms.row_table import parse_row_table

KERNEL = NM_LINEAR.kernel("cuda_sm90")
TWO_FOUR = NM(2, 4)


def problem(pattern: Pattern = TWO_FOUR, m: int = 4096, **changed: Any) -> Problem:
    values: dict[str, Any] = {"n": 4096, "k": 4096, "dtype": "bfloat16", "device": "cuda", "capability": (9, 0)}
    return Problem("nm_linear", pattern, m, **(values | changed))


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (problem(device="cpu", capability=None), "it runs on CUDA, this layer is on cpu"),
        (problem(NM(1, 4)), "wgmma.sp takes 2:4, this pattern is 1:4"),
        (problem(dtype="float32"), "it takes bfloat16 and float16, this layer is float32"),
        (problem(n=100), "it takes n in multiples of 8 and k of 16, this weight is 100x4096"),
        (problem(k=4104), "it takes n in multiples of 8 and k of 16, this weight is 4096x4104"),
        *(
            (problem(capability=c), f"wgmma.sp exists on compute capability 9.0 alone, this device has {c[0]}.{c[1]}")
            for c in ((8, 0), (8, 9), (10, 0), (12, 0))
        ),
    ],
)
@pytest.mark.usefixtures("native")
def test_cuda_sm90_says_why_not(asked: Problem, said: str) -> None:
    assert KERNEL.why_not(asked) == said


@pytest.mark.parametrize("m", [1, 7, 64, 300, 16384])
@pytest.mark.usefixtures("native")
def test_cuda_sm90_takes_any_rows(m: int) -> None:
    for dtype in ("bfloat16", "float16"):
        for n, k in ((4096, 4096), (8, 16), (3584, 18944)):
            assert KERNEL.why_not(problem(m=m, n=n, k=k, dtype=dtype)) is None


def test_a_build_without_cutlass_has_the_kernel_and_says_what_to_do(
    native: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    native.sm90_configs = dict.fromkeys(native.sm90_configs, ())
    said = "ajour was built without CUTLASS's headers: pip install --no-deps 'nvidia-cutlass>=4.2,<4.3', build again"
    assert KERNEL.why_not(problem()) == said
    monkeypatch.setattr(sm90, "HAS_CUDA", False)
    said = "ajour was built without CUDA; build it where nvcc is found, with AJOUR_CUDA=ON"
    assert KERNEL.why_not(problem()) == said


@pytest.mark.parametrize(
    ("configs", "said"),
    [
        (
            {"bfloat16": ("256x128x128_2x1", "128x64x128_1x2"), "float16": (), "e4m3": ("128x128x256_2x1",)},
            "built in; cuda_sm90: bfloat16 256x128x128_2x1, 128x64x128_1x2; e4m3 128x128x256_2x1",
        ),
        ({"bfloat16": ()}, "built in; cuda_sm90: not built, for want of CUTLASS's headers (nvidia-cutlass)"),
    ],
)
def test_the_doctor_says_what_was_built(
    configs: dict[str, tuple[str, ...]], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_native, "HAS_CUDA", True)
    monkeypatch.setattr(_native.native, "sm90_configs", configs)
    (found,) = (each for each in machine.look() if each.subject == "CUDA kernels")
    assert (found.status, found.found) == ("ok", said)


@pytest.mark.usefixtures("native")
def test_configurations_are_what_was_built_cut_or_whole_and_as_wide_as_there_are_rows() -> None:
    assert KERNEL.configs(problem(m=256)) == (
        "256x128x128_2x1 stream w1",
        "256x128x128_2x1 tiles w1",
        "256x128x128_2x1 tiles w2",
        "128x64x128_1x2 stream w1",
        "128x64x128_1x2 tiles w1",
        "128x64x128_1x2 tiles w2",
        "128x64x128_1x2 tiles w4",
    )
    assert len(KERNEL.configs(problem(m=4096))) == 10
    for config in KERNEL.configs(problem(m=4096)):
        table = parse_row_table(f"64x64 bfloat16 2:4 | * cuda_sm90 0:2 {config}")
        assert table.at(1).config == config, "a plan keeps it"


@pytest.mark.parametrize(
    ("n", "widths"),
    [(4096, "1248"), (8, "1"), (3072, "12"), (14336, "124"), (18944, "1248"), (5632, "124"), (2560, "1")],
)
def test_a_width_that_would_add_many_empty_tiles_is_no_configuration(
    native: SimpleNamespace, n: int, widths: str
) -> None:
    """CUTLASS rounds clusters of 512 features up to a multiple of the width: at 14336, 28 of them to 32 for eight."""
    native.sm90_configs["bfloat16"] = native.sm90_configs["bfloat16"][:1]
    found = KERNEL.configs(problem(m=4096, n=n))
    assert found == ("256x128x128_2x1 stream w1", *(f"256x128x128_2x1 tiles w{width}" for width in widths))


@pytest.mark.usefixtures("native")
def test_a_configuration_is_a_tile_a_cut_and_a_width() -> None:
    assert sm90.parse("", "bfloat16") == ("256x128x128_2x1", True, 1)
    assert sm90.parse("128x64x128_1x2 tiles w4", "bfloat16") == ("128x64x128_1x2", False, 4)
    for wrong in ("c2 s4", "256x128x128_2x1", "256x128x128_2x1 tiles w3"):
        with pytest.raises(KernelError, match="is no configuration of cuda_sm90; expected '256x128x128_2x1 tiles w4'"):
            sm90.parse(wrong, "bfloat16")


def test_a_dtype_that_was_not_built_is_refused_with_what_to_do(native: SimpleNamespace) -> None:
    """The smaller build that continuous integration makes; the other dtypes are as they were."""
    native.sm90_configs["float16"] = ()
    said = "it was built for bfloat16, e4m3, not for float16; build ajour again, with AJOUR_SM90_DTYPES=ALL"
    assert KERNEL.why_not(problem(dtype="float16")) == said
    assert KERNEL.why_not(problem()) is None


@pytest.mark.usefixtures("native")
def test_a_configuration_of_another_build_is_refused_before_it_runs() -> None:
    wanted = "128x256x128_2x1 tiles w2"
    said = (
        f"this build has no 128x256x128_2x1 for bfloat16, which '{wanted}' asks for, it has 256x128x128_2x1, "
        "128x64x128_1x2; build with AJOUR_SM90_CONFIGS=ALL for all of them"
    )
    assert KERNEL.check is not None
    with pytest.raises(KernelError, match=re.escape(said)):
        KERNEL.check(problem(), wanted)
    KERNEL.check(problem(), "128x64x128_1x2 tiles w4")


def packed_layer(n: int = 64, k: int = 32) -> list[Tensor]:
    w = torch.randn(n, k).bfloat16() * (torch.arange(k) % 4 < 2)
    return [NMMatrix.from_dense(w, NM(2, 4)).values, torch.zeros(512, dtype=torch.uint8)]


@pytest.mark.parametrize(
    "x",
    [
        torch.randn(3, 32),
        torch.randn(6, 32)[::2],
        torch.randn(3, 40)[:, :32],
        torch.randn(3, 35)[:, 2:34],
        torch.randn(3, 36)[:, :32],
        torch.randn(32, 3).t(),
        torch.randn(1, 32).expand(3, 32),
        torch.randn(2, 35)[1:, 1:33],
    ],
    ids=[
        "plain",
        "every second row",
        "aligned part",
        "unaligned part",
        "odd rows",
        "transposed",
        "repeated",
        "one row",
    ],
)
def test_rows_of_any_layout_reach_the_launch_as_tma_wants_them(native: SimpleNamespace, x: Tensor) -> None:
    x = x.bfloat16() if x.is_contiguous() else x.to(torch.bfloat16, memory_format=torch.preserve_format)
    (entry,) = parse_row_table("64x32 bfloat16 2:4 | * cuda_sm90 0:2").entries
    residual = torch.randn(x.shape[0] * 64 + 1).bfloat16()[1:].view(-1, 64)
    y = KERNEL.run(x, packed_layer(), torch.randn(64).bfloat16(), residual, "silu", entry)
    assert (y.shape, y.dtype, y.is_contiguous()) == ((x.shape[0], 64), torch.bfloat16, True)
    ((call, *addresses),) = native.launched
    values, metadata, w_scales, rows, stride, x_scales, bias, added, out, scratch, activation, *_ = addresses
    assert call.described == ("bfloat16", "256x128x128_2x1", x.shape[0], 64, 32, True, 1, 132)
    assert (w_scales, x_scales, activation) == ((0, 0), 0, 4)
    assert all(address % 16 == 0 and address for address in (values[0], metadata[0], rows, added, out, scratch))
    assert bias
    assert stride % 8 == 0
    assert stride >= 32


@pytest.mark.parametrize("m", [1, 5])
def test_without_bias_residual_and_scratch_there_are_no_addresses(native: SimpleNamespace, m: int) -> None:
    native.Sm90Call = lambda *described: SimpleNamespace(described=described, scratch_bytes=0)
    (entry,) = parse_row_table("64x32 float16 2:4 | * cuda_sm90 0:2 128x64x128_1x2 tiles w1").entries
    KERNEL.run(torch.randn(m, 32).half(), packed_layer(), None, None, "none", entry)
    ((call, *addresses),) = native.launched
    assert call.described == ("float16", "128x64x128_1x2", m, 64, 32, False, 1, 132)
    assert [addresses[i] for i in (6, 7, 9)] == [0, 0, 0]


def test_it_stands_before_what_it_should_beat() -> None:
    names = list(NM_LINEAR.kernels)
    assert names.index("cuda_decode") < names.index("cuda_sm90") < names.index("cusparselt")
