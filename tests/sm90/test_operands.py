"""Operands that TMA can't move are refused before anything is launched, so this needs no GPU; and what was built."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import pytest

from ajour._native import HAS_CUDA, native
from ajour.terms.errors import KernelError

PLACE = 4096  # an address that no refusal reads
LARGE = 1 << 20  # bytes that are enough
BUILT = [(floats, config) for floats, configs in native.sm90_configs.items() for config in configs[:1]]


@pytest.fixture(autouse=True)
def built() -> None:
    """Something must have been built to refuse anything."""
    if not BUILT:
        pytest.skip("ajour was built without CUDA or without CUTLASS's headers: no operand was refused")


def linear(
    floats: str, config: str, n: int = 64, k: int = 96, sizes: Mapping[str, int] = MappingProxyType({}), **changed: Any
) -> None:
    """A product on addresses that nobody reads, as all of these calls end in a refusal. sizes: of packed tensors."""
    scales = PLACE if floats == "e4m3" else 0
    places = dict.fromkeys(("values", "metadata", "x", "residual", "y", "scratch"), PLACE)
    given = {**places, "w_scales": scales, "x_scales": scales, "x_stride": k, **changed}
    order = ("values", "metadata", "w_scales", "x", "x_stride", "x_scales")
    call = native.Sm90Call(floats, config, 8, n, k, False, 1, 132)
    rest = (0, *(given[name] for name in ("residual", "y", "scratch")), 0, 0, 0)
    lent = {name: (given[name], sizes.get(name, LARGE)) for name in ("values", "metadata", "w_scales")}
    native.sm90_linear(call, *((given | lent)[name] for name in order), *rest)


@pytest.mark.parametrize("name", ["values", "metadata", "x", "residual", "y", "scratch"])
@pytest.mark.parametrize(("floats", "config"), BUILT)
def test_an_address_off_16_bytes_is_refused(floats: str, config: str, name: str) -> None:
    for off in (1, 8, 15):
        with pytest.raises(
            KernelError, match="values, metadata, x, residual, y and scratch must be aligned to 16 bytes"
        ):
            linear(floats, config, **{name: PLACE + off})


@pytest.mark.parametrize(("floats", "config"), BUILT)
def test_sides_whose_rows_are_no_multiple_of_16_bytes_are_refused(floats: str, config: str) -> None:
    """Rows of y are 2 n bytes, those of the values k / 2 elements."""
    whole = 32 if floats == "e4m3" else 16
    for n, k in ((63, 96), (4, 96), (64, 96 + whole // 2), (64, 95)):
        with pytest.raises(KernelError, match=f"n must be a multiple of 8 and k of {whole}, this weight is {n}x{k}"):
            linear(floats, config, n, k)


@pytest.mark.parametrize(("floats", "config"), BUILT)
def test_packed_tensors_that_are_too_small_are_refused(floats: str, config: str) -> None:
    scaled = floats == "e4m3"
    needed = {"values": 64 * 48 * (1 if scaled else 2), "positions": 512 * (32 if scaled else 16)}
    if scaled:
        needed["scales"] = 64 * 4
    for name, given in (("positions", "metadata"), ("values", "values"), ("scales", "w_scales")):
        if name in needed:
            said = f"the {name} of this weight take {needed[name]} bytes, found {needed[name] - 1}"
            with pytest.raises(KernelError, match=said):
                linear(floats, config, sizes={given: needed[name] - 1})


@pytest.mark.parametrize(("floats", "config"), BUILT)
def test_rows_of_x_that_are_apart_by_no_multiple_of_16_bytes_are_refused(floats: str, config: str) -> None:
    apart = 16 if floats == "e4m3" else 8
    for stride in (97, 96 + apart // 2):
        said = f"rows of x must be a multiple of {apart} elements apart, these are {stride}"
        with pytest.raises(KernelError, match=said):
            linear(floats, config, x_stride=stride)


@pytest.mark.parametrize("missing", ["w_scales", "x_scales"])
@pytest.mark.parametrize(("floats", "config"), [each for each in BUILT if each[0] == "e4m3"])
def test_8_bit_floats_without_their_scales_are_refused(floats: str, config: str, missing: str) -> None:
    with pytest.raises(KernelError, match="a product of 8-bit floats needs the scales of the weight and of x"):
        linear(floats, config, **{missing: 0})


@pytest.mark.parametrize(
    ("floats", "config"), [("bfloat16", "1x1x1_1x1"), ("e4m3", "256x128x128_2x1"), ("float32", "")]
)
def test_a_configuration_that_was_not_built_is_named(floats: str, config: str) -> None:
    said = f"configuration '{config}' of cuda_sm90 was not built for {floats}; AJOUR_SM90_CONFIGS and AJOUR_SM90_DTYPES"
    with pytest.raises(KernelError, match=said):
        native.Sm90Call(floats, config, 1, 8, 16, False, 1, 132)


def test_a_build_without_cuda_has_no_configurations() -> None:
    assert set(native.sm90_configs) == {"bfloat16", "float16", "e4m3"}
    assert HAS_CUDA or not BUILT
