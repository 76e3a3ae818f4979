"""The kernels for sm_90a as they were built: sparse tensor cores that wait for nobody, TMA, everything in registers."""

from __future__ import annotations

import re

import pytest

from ajour._native import HAS_CUDA, native
from compiled import kernels, opcodes

SPARSE = "WarpSpecializedSparse"  # CUTLASS's main loop, in the name of each of its kernels
PRODUCTS = {
    "bfloat16": r"HGMMA\.SP\.64x\d+x32\.F32\.BF16",
    "float16": r"HGMMA\.SP\.64x\d+x32\.F32",
    "e4m3": r"QGMMA\.SP\.64x\d+x64\.F32\.E4M3\.E4M3",
}
Kernels = dict[str, list[str]]  # name -> opcodes


@pytest.fixture(scope="module")
def found() -> dict[str, Kernels]:
    """What was compiled for each dtype, told by the instruction that multiplies.

    A build without CUDA says so, as a skip; one with CUDA and no such kernel is broken.
    """
    compiled = kernels("-sass", SPARSE)
    assert compiled or not HAS_CUDA, (
        "ajour was built with CUDA and without a kernel for sm_90a: pip install --no-deps 'nvidia-cutlass>=4.2,<4.3' "
        "and build again"
    )
    by_dtype: dict[str, Kernels] = {dtype: {} for dtype in PRODUCTS}
    for (arch, name), text in compiled.items():
        assert arch == "sm_90", name
        ops = opcodes(text)
        products = {o for o in ops if "GMMA" in o}
        dtypes = [d for d, product in PRODUCTS.items() if products and all(re.fullmatch(product, o) for o in products)]
        assert len(dtypes) == 1, f"{name} multiplies by {products or 'nothing'}, not by one of {PRODUCTS}"
        by_dtype[dtypes[0]][name] = ops
    return by_dtype


@pytest.fixture(params=PRODUCTS)
def of_dtype(found: dict[str, Kernels], request: pytest.FixtureRequest) -> Kernels:
    """The kernels of one dtype; one that AJOUR_SM90_DTYPES left out says so, as a skip."""
    if not native.sm90_configs[request.param]:
        pytest.skip(f"nothing was said of cuda_sm90 in {request.param}: AJOUR_SM90_DTYPES left it out of this build")
    return found[request.param]


def test_what_the_build_says_is_what_was_compiled_and_every_product_is_sparse(found: dict[str, Kernels]) -> None:
    built = {dtype: len(configs) for dtype, configs in native.sm90_configs.items()}
    assert {dtype: len(of_dtype) for dtype, of_dtype in found.items()} == built
    assert any(built.values())


def test_no_kernel_spills(of_dtype: Kernels) -> None:
    said = {name: text for (_, name), text in kernels("-res-usage", SPARSE).items()}
    for name, ops in of_dtype.items():
        assert "STACK:0 " in said[name], said[name]
        assert "LOCAL:0 " in said[name], said[name]
        assert not any(o.startswith(("LDL", "STL")) for o in ops), name


def test_no_product_waits_for_the_one_before(found: dict[str, Kernels]) -> None:
    """Where ptxas finds a call in a kernel, an assert for example, it drains the tensor cores after each product.

    Sums of 8-bit products leave the tensor cores, which keep fewer bits of them, four products at a time: a wait each.
    """
    for dtype, of_dtype in found.items():
        for name, ops in of_dtype.items():
            products, waits = (sum(word in o for o in ops) for word in ("GMMA", "WARPGROUP.DEPBAR"))
            assert waits * (1 if dtype == "e4m3" else 2) <= products, f"{name}: {waits} waits for {products} products"


def test_operands_come_by_tma_and_clusters_share_them(found: dict[str, Kernels]) -> None:
    for dtype, of_dtype in found.items():
        shared = sum(not config.endswith("_1x1") for config in native.sm90_configs[dtype])
        assert sum(any("MULTICAST" in o for o in ops) for ops in of_dtype.values()) == shared, dtype
        for name, ops in of_dtype.items():
            assert any(o.startswith("UTMALDG") for o in ops), name
            assert any(o.startswith("UTMASTG") for o in ops), name


@pytest.mark.parametrize("dtype", PRODUCTS)
@pytest.mark.parametrize("rows", [1, 100, 256, 1024, 4096, 16384])
def test_whole_tiles_need_no_scratch_and_cut_ones_some_for_two_waves_at_most(dtype: str, rows: int) -> None:
    for config in native.sm90_configs[dtype]:
        features, tokens = (int(side) for side in config.split("x")[:2])
        for n, k in ((4096, 4096), (14336, 4096), (8, 32)):
            whole, cut = (native.Sm90Call(dtype, config, rows, n, k, stream, 1, 132) for stream in (False, True))
            assert whole.scratch_bytes == 0
            assert cut.scratch_bytes <= (2 * 132 + 4) * (features * tokens * 4 + 64), f"{config} {rows} {n}x{k}"
