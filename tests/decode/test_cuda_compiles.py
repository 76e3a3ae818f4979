"""The decode kernels as they were built, for sm_80 and sm_90a: everything in registers, and the instructions meant.

Looks into the compiled extension, so it needs a build with CUDA, not a GPU; without one it says so, as a skip.
"""

from __future__ import annotations

import pytest

from compiled import kernels, opcodes

ARCHITECTURES = ("sm_80", "sm_90")
KINDS = 2  # bfloat16 and float16
# instances for each kind: tiles of 8 to 64 rows, straight code for three patterns up to 32 rows; or 1, 2 and 4 rows
DECODERS = {
    "SparseMma": 4, "PlacedValues": 4 * 4 + 3 * 3, "BitmapDecoder": 4, "DenseMma": 4, "SparseLanes": 3, "gap_linear": 3,
}  # fmt: skip
ON_CUDA_CORES = ("SparseLanes", "gap_linear")
DECODE = "stripe_linear|gap_linear"
PACKING = "do_each|NMSlabs"
WORK = ("PackGroups", "PackTiles", "PackBitmapSlabs", "PackGapRows", "UnpackTiles", "UnpackGapRows")


@pytest.fixture(scope="module")
def instructions() -> dict[tuple[str, str], set[str]]:
    """The opcodes of each kernel."""
    return {key: set(opcodes(text)) for key, text in kernels("-sass", DECODE).items()}


def test_every_kernel_is_there_for_both_architectures() -> None:
    names = list(kernels("-res-usage", DECODE))
    for arch in ARCHITECTURES:
        for decoder, instances in DECODERS.items():
            count = sum(decoder in name for found, name in names if found == arch)
            assert count == instances * KINDS, f"{arch} {decoder}"


def test_no_kernel_spills() -> None:
    for key, said in kernels("-res-usage", DECODE).items():
        assert "STACK:0 " in said, f"{key}: {said.strip()}"
        assert "LOCAL:0 " in said, f"{key}: {said.strip()}"


def test_packing_keeps_everything_in_registers() -> None:
    found = kernels("-res-usage", PACKING)
    for arch in ARCHITECTURES:
        names = " ".join(name for at, name in found if at == arch)
        assert all(work in names for work in WORK), f"{arch}: {names}"
    for key, said in found.items():
        assert "STACK:0 " in said, f"{key}: {said.strip()}"
        assert "LOCAL:0 " in said, f"{key}: {said.strip()}"


def test_the_tensor_cores_and_asynchronous_copies_are_used(instructions: dict[tuple[str, str], set[str]]) -> None:
    assert instructions
    for (arch, name), found in instructions.items():
        starts = tuple(found)
        sparse, dense = (any(o.startswith(kind) for o in starts) for kind in ("HMMA.SP.16832", "HMMA.16816"))
        on_cores = any(decoder in name for decoder in ON_CUDA_CORES)
        assert (sparse, dense) == ("SparseMma" in name, "SparseMma" not in name and not on_cores), f"{arch} {name}"
        assert not any(o.startswith(("LDL", "STL")) for o in starts), f"{arch} {name}: local memory"
        if "gap_linear" in name:
            assert "LDG.E.64.CONSTANT" in {o.replace(".NA", "") for o in starts}, f"{arch} {name}: narrow loads"
            continue
        assert any(o.startswith("LDGSTS") for o in starts), f"{arch} {name}: x is not copied asynchronously"
        assert any(o.startswith("UBLKCP") for o in starts) == (arch == "sm_90"), f"{arch} {name}: bulk copies"
