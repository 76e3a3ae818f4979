"""cuda_sm90 of scaled_nm_linear before it is launched: what it refuses, its configurations, the call that it makes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ajour.formats import ScaledNMMatrix
from ajour.formats.e4m3 import E4M3, round_rows, row_scales
from ajour.ops import SCALED_NM_LINEAR, sm90
from ajour.ops.scaled_nm_linear import sm90_kernel
from ajour.terms.errors import KernelError
from ajour.terms.pattern import NM
from ajour.terms.problem import Problem
from ajour.terms.row_table import parse_row_table
from pruned import keep_mask

KERNEL = SCALED_NM_LINEAR.kernel("cuda_sm90")
pytestmark = pytest.mark.usefixtures("native")


def problem(**changed: Any) -> Problem:
    values: dict[str, Any] = {"m": 512, "n": 4096, "k": 4096, "dtype": "bfloat16", "device": "cuda"}
    return Problem("scaled_nm_linear", NM(2, 4), **({"capability": (9, 0)} | values | changed))


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"device": "cpu", "capability": None}, "it runs on CUDA, this layer is on cpu"),
        ({"dtype": "float16"}, "it takes bfloat16, this layer is float16"),
        ({"capability": (8, 9)}, "wgmma.sp exists on compute capability 9.0 alone, this device has 8.9"),
        ({"k": 4112}, "it takes n in multiples of 8 and k of 32, this weight is 4096x4112"),
        ({"n": 4100}, "it takes n in multiples of 8 and k of 32, this weight is 4100x4096"),
        ({"m": 1, "n": 8, "k": 32}, None),
    ],
    ids=str,
)
def test_it_refuses_with_a_sentence(changed: dict[str, Any], expected: str | None) -> None:
    assert KERNEL.why_not(problem(**changed)) == expected


def test_a_build_without_e4m3_says_so(native: SimpleNamespace) -> None:
    native.sm90_configs["e4m3"] = ()
    said = "it was built for bfloat16, float16, not for e4m3; build ajour again, with AJOUR_SM90_DTYPES=ALL"
    assert KERNEL.why_not(problem()) == said


def test_its_configurations_are_those_of_16_bits_with_its_own_tile() -> None:
    """Clusters of 256 features: the scheduler rounds them up to the width, with 8-bit floats as with 16."""
    widths = {4096: "1248", 14336: "1248", 5632: "1248", 6400: "12", 2560: "12", 8: "1"}
    for n, expected in widths.items():
        configs = KERNEL.configs(problem(m=4096, n=n))
        assert configs == ("128x128x256_2x1 stream w1", *(f"128x128x256_2x1 tiles w{width}" for width in expected))
        assert all(sm90.parse(config, "e4m3").built == "128x128x256_2x1" for config in configs)
    assert len(KERNEL.configs(problem(m=64))) == 2
    with pytest.raises(KernelError, match="'tiles w4' is no configuration of cuda_sm90; expected '128x128x256"):
        sm90.parse("tiles w4", "e4m3")


@pytest.mark.parametrize(("m", "rows"), [(1, (128, 16)), (64, (128, 16)), (65, (128,)), (4096, (128,))])
def test_narrow_tiles_are_for_few_rows(native: SimpleNamespace, m: int, rows: tuple[int, ...]) -> None:
    """Each tile of x reads the weight; those of a larger build are compared where they may pay."""
    native.sm90_configs["e4m3"] = ("128x128x256_2x1", "128x16x256_2x1")
    found = {sm90.parse(config, "e4m3").built for config in KERNEL.configs(problem(m=m))}
    assert found == {f"128x{side}x256_2x1" for side in rows}
    native.sm90_configs["e4m3"] = ("128x16x256_2x1",)
    assert KERNEL.configs(problem(m=m))[0] == "128x16x256_2x1 stream w1", "one is better than none"


@pytest.mark.parametrize("m", [1, 5])
def test_rounded_rows_and_both_scales_reach_the_launch(
    native: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, m: int
) -> None:
    w = torch.where(keep_mask(NM(2, 4), 64, 32), torch.randn(64, 32), 0.0).bfloat16()
    packed, made = KERNEL.prepack(ScaledNMMatrix.quantize(w), ""), []

    def rounding(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        made.append((round_rows(x, row_scales(x)), row_scales(x).float()))
        return made[-1]

    monkeypatch.setattr(sm90_kernel, "round_rows", rounding)
    (entry,) = parse_row_table("64x32 bfloat16 2:4 | * cuda_sm90 0:3 128x128x256_2x1 tiles w2").entries
    y = KERNEL.run(torch.randn(m, 40)[:, :32].bfloat16(), packed, None, None, "relu", entry)
    assert (y.shape, y.dtype) == ((m, 64), torch.bfloat16)
    ((rounded, x_scales),) = made
    assert rounded.dtype == E4M3
    ((call, *addresses),) = native.launched
    assert call.described == ("e4m3", "128x128x256_2x1", m, 64, 32, False, 2, 132)
    wanted = [
        *((t.data_ptr(), t.nbytes) for t in packed),
        rounded.data_ptr(),
        32,
        x_scales.data_ptr(),
        0,
        0,
        y.data_ptr(),
    ]
    assert addresses[:9] == wanted
