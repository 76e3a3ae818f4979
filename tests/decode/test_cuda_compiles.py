"""The decode kernels as they were built, for sm_80 and sm_90a: everything in registers, and the instructions meant.

Looks into the compiled extension, so it needs a build with CUDA, not a GPU; without one it says so, as a skip.
"""

from __future__ import annotations

import pytest

from compiled import kernels, opcodes

ARCHITECTURES = ("sm_80", "sm_90")
TOKENS, KINDS = 4, 2  # 8, 16, 32 and 64 rows; bfloat16 and float16
DECODERS = {"SparseMma": 1, "PlacedValues": 4, "BitmapDecoder": 1}  # with how many instances each
DECODE = "stripe_linear"


@pytest.fixture(scope="module")
def instructions() -> dict[tuple[str, str], set[str]]:
    """The opcodes of each kernel."""
    return {key: set(opcodes(text)) for key, text in kernels("-sass", DECODE).items()}


def test_every_kernel_is_there_for_both_architectures() -> None:
    names = list(kernels("-res-usage", DECODE))
    for arch in ARCHITECTURES:
        for decoder, instances in DECODERS.items():
            count = sum(decoder in name for found, name in names if found == arch)
            assert count == instances * TOKENS * KINDS, f"{arch} {decoder}"


def test_no_kernel_spills() -> None:
    for key, said in kernels("-res-usage", DECODE).items():
        assert "STACK:0 " in said, f"{key}: {said.strip()}"
        assert "LOCAL:0 " in said, f"{key}: {said.strip()}"


def test_the_tensor_cores_and_asynchronous_copies_are_used(instructions: dict[tuple[str, str], set[str]]) -> None:
    assert instructions
    for (arch, name), found in instructions.items():
        starts = tuple(found)
        sparse, dense = (any(o.startswith(kind) for o in starts) for kind in ("HMMA.SP.16832", "HMMA.16816"))
        assert (sparse, dense) == ("SparseMma" in name, "SparseMma" not in name), f"{arch} {name}"
        assert any(o.startswith("LDGSTS") for o in starts), f"{arch} {name}: x is not copied asynchronously"
        assert any(o.startswith("UBLKCP") for o in starts) == (arch == "sm_90"), f"{arch} {name}: bulk copies"
        assert not any(o.startswith(("LDL", "STL")) for o in starts), f"{arch} {name}: local memory"
