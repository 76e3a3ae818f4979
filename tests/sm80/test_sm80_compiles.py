"""cuda_sm80 as it was built, for sm_80 and sm_90a: everything in registers, and the instructions meant.

Looks into the compiled extension, so it needs a build with CUDA, not a GPU; without one it says so, as a skip.
"""

from __future__ import annotations

import pytest

from compiled import kernels, opcodes

NAME = "sm80_linear"
TILES, KINDS = 4, 2  # bfloat16 and float16
ARCHITECTURES = ("sm_80", "sm_90")


def test_every_tile_is_there_for_both_architectures() -> None:
    names = list(kernels("-res-usage", NAME))
    for arch in ARCHITECTURES:
        assert sum(found == arch for found, _ in names) == TILES * KINDS, arch


def test_no_kernel_spills() -> None:
    for key, said in kernels("-res-usage", NAME).items():
        assert "STACK:0 " in said, f"{key}: {said.strip()}"
        assert "LOCAL:0 " in said, f"{key}: {said.strip()}"


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_sparse_tensor_cores_are_fed_by_asynchronous_copies_and_ldmatrix(arch: str) -> None:
    found = {name: opcodes(text) for (at, name), text in kernels("-sass", NAME).items() if at == arch}
    assert found
    for name, instructions in found.items():
        products = [o for o in instructions if o.startswith("HMMA")]
        assert all(o.startswith("HMMA.SP.16832") for o in products), name
        # a step is two halves of 4 fragments by 8 or 4 tiles of tokens: multiplied in one place, unrolled
        assert len(products) in (2 * 4 * 8, 2 * 4 * 4), f"{name}: {len(products)} products"
        assert sum(o.startswith("LDSM.16.M88.4") for o in instructions) == len(products) // 4, name
        assert any(o.startswith("LDGSTS") for o in instructions), f"{name}: nothing is copied asynchronously"
        assert not any(o.startswith(("LDL", "STL")) for o in instructions), f"{name}: local memory"
