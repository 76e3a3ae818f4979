"""The kernels for sm_90a as they were built: sparse tensor cores that wait for nobody, TMA, everything in registers."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from ajour._native import native
from ajour.terms.errors import KernelError
from compiled import kernels, opcodes

SPARSE = "WarpSpecializedSparse"  # CUTLASS's main loop, in the name of each of its kernels
SMALL = "WarpSpecializedSparseFP8"  # that of scaled_nm_linear


@pytest.fixture(scope="module", autouse=True)
def built() -> list[str]:
    """The configurations; a build without them says so, as a skip."""
    if not native.sm90_configs:
        pytest.skip("ajour was built without CUDA or without CUTLASS's headers: nothing was said of cuda_sm90")
    return list(native.sm90_configs)


@pytest.fixture(scope="module")
def instructions() -> dict[tuple[str, str], list[str]]:
    """The opcodes of each kernel of nm_linear."""
    return {key: opcodes(text) for key, text in kernels("-sass", SPARSE).items() if SMALL not in key[1]}


def test_every_configuration_is_there_for_both_dtypes_and_sm_90_alone(
    built: list[str], instructions: dict[tuple[str, str], list[str]]
) -> None:
    assert {arch for arch, _ in instructions} == {"sm_90"}
    dtypes = Counter("BF16" in next(o for o in found if o.startswith("HGMMA")) for found in instructions.values())
    assert dtypes == {True: len(built), False: len(built)}


def test_no_kernel_spills(instructions: dict[tuple[str, str], list[str]]) -> None:
    for key, said in kernels("-res-usage", SPARSE).items():
        assert "STACK:0 " in said, f"{key}: {said.strip()}"
        assert "LOCAL:0 " in said, f"{key}: {said.strip()}"
    for (_, name), found in instructions.items():
        assert not any(o.startswith(("LDL", "STL")) for o in found), name


def test_every_product_is_sparse_and_none_waits_for_the_one_before(
    instructions: dict[tuple[str, str], list[str]],
) -> None:
    """Where ptxas finds a call in a kernel, an assert for example, it drains the tensor cores after each product."""
    assert instructions
    for (_, name), found in instructions.items():
        products = [o for o in found if o.startswith("HGMMA")]
        assert products
        assert all(re.match(r"HGMMA\.SP\.64x\d+x32\.F32", o) for o in products), name
        # main loops begin with the first product; from there, groups of products end in one wait each
        waits = sum(o.startswith("WARPGROUP.DEPBAR") for o in found)
        assert waits * 2 <= len(products), f"{name}: {waits} waits for {len(products)} products"


def test_operands_come_by_tma_and_clusters_share_them(
    built: list[str], instructions: dict[tuple[str, str], list[str]]
) -> None:
    shared = sum(not config.endswith("_1x1") for config in built)
    multicasts = 0
    for (_, name), found in instructions.items():
        assert any(o.startswith("UTMALDG") for o in found), name
        assert any(o.startswith("UTMASTG") for o in found), name
        multicasts += any("MULTICAST" in o for o in found)
    assert multicasts == 2 * shared


@pytest.mark.parametrize("rows", [1, 100, 256, 1024, 4096, 16384])
def test_whole_tiles_need_no_scratch_and_cut_ones_some_for_two_waves_at_most(built: list[str], rows: int) -> None:
    for config in built:
        features, tokens = (int(side) for side in config.split("x")[:2])
        for n, k in ((4096, 4096), (14336, 4096), (8, 16)):
            whole, cut = (
                native.Sm90Call(rows, n, k, stream, 1, 132).scratch_bytes(config, bfloat16)
                for stream, bfloat16 in ((False, True), (True, False))
            )
            assert whole == 0
            assert cut <= (2 * 132 + 4) * (features * tokens * 4 + 64), f"{config} {rows} {n}x{k}"


def test_a_configuration_that_was_not_built_is_named() -> None:
    with pytest.raises(KernelError, match="configuration '1x1x1_1x1' of cuda_sm90 was not built; build with"):
        native.Sm90Call(1, 8, 16, False, 1, 132).scratch_bytes("1x1x1_1x1", True)


def test_products_in_e4m3_are_sparse_and_fed_by_tma() -> None:
    """Their sums leave the tensor cores, which keep fewer bits of them, four products at a time."""
    ((arch, name),) = kernels("-sass", SMALL)
    found = opcodes(kernels("-sass", SMALL)[arch, name])
    assert arch == "sm_90"
    assert {o for o in found if "GMMA" in o} == {"QGMMA.SP.64x128x64.F32.E4M3.E4M3"}
    assert sum(o.startswith("WARPGROUP.DEPBAR") for o in found) <= sum("GMMA" in o for o in found)
    for wanted in ("UTMALDG", "UTMASTG"):
        assert any(o.startswith(wanted) for o in found), wanted
    assert any("MULTICAST" in o for o in found)
    assert not any(o.startswith(("LDL", "STL")) for o in found), "local memory"
    said = kernels("-res-usage", SMALL)[arch, name]
    assert "STACK:0 " in said, said
    assert "LOCAL:0 " in said, said
