"""The Triton kernels compile ahead of time for sm_80 and sm_90, and keep everything in registers. Needs no GPU."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from ajour.ops import LINEAR_OPS
from ajour.ops.triton_door import Tile, parse_tile
from ajour.terms.pattern import NM, Pattern, Unstructured
from ajour.terms.problem import Problem

triton = pytest.importorskip("triton", reason="Triton is not installed", exc_type=ImportError)

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from ajour.ops.bitmap_linear import triton_kernel as bitmap_triton  # noqa: E402
from ajour.ops.nm_linear import triton_kernel as nm_triton  # noqa: E402
from ajour.ops.scaled_nm_linear import triton_kernel as scaled_triton  # noqa: E402

PTXAS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas"
SHORT = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
CASES = [
    (nm_triton.nm_linear, "nm_linear", NM(2, 4)),
    (nm_triton.nm_linear, "nm_linear", NM(7, 32)),
    (bitmap_triton.bitmap_linear, "bitmap_linear", Unstructured()),
]


def problem(op: str, pattern: Pattern, dtype: str, m: int) -> Problem:
    return Problem(op, pattern, m, 4096, 4096, dtype, "cuda", (9, 0), 0.5, "gelu")


def constants(pattern: Pattern, tile: Tile) -> dict[str, Any]:
    found: dict[str, Any] = {"TILE_M": tile.m, "TILE_N": tile.n, "ACTIVATION": "gelu"}
    if isinstance(pattern, NM):
        bits = (pattern.group - 1).bit_length()
        found |= {"KEEP": pattern.keep, "GROUP": pattern.group, "BITS": bits, "TILE_G": tile.k >> bits}
    return found


def compiled(kernel: Any, pattern: Pattern, dtype: str, sm: int, tile: Tile) -> Any:
    floats, bytes_, ints = f"*{SHORT[dtype]}", "*u8", "*i32"
    pointers = {"x": floats, "y": floats, "bias": floats, "residual": floats, "values": floats}
    pointers |= {"positions": bytes_, "bitmaps": bytes_, "offsets": ints}
    if "scales" in kernel.arg_names:  # of values in 8-bit floats
        pointers |= {"scales": floats, "values": bytes_}
    fixed = {name: value for name, value in constants(pattern, tile).items() if name in kernel.arg_names}
    signature = {name: "constexpr" if name in fixed else pointers.get(name, "i32") for name in kernel.arg_names}
    aligned = {  # as at run time: torch's pointers, and sizes that are multiples of 16
        (place,): [["tt.divisibility", 16]]
        for place, (name, kind) in enumerate(signature.items())
        if kind != "constexpr" and name != "m"
    }
    source = ASTSource(kernel, signature, constexprs=fixed, attrs=aligned)
    options = {"num_warps": tile.warps, "num_stages": tile.stages}
    return triton.compile(source, target=GPUTarget("cuda", sm, 32), options=options)


def spilled_bytes(ptx: str, folder: Path) -> int:
    """What ptxas itself says that it spills to local memory."""
    (folder / "kernel.ptx").write_text(ptx)
    arch = re.search(r"\.target (\w+)", ptx)
    assert arch is not None
    command = [str(PTXAS), "-v", f"-arch={arch[1]}", "kernel.ptx", "-o", "kernel.cubin"]
    said = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stderr
    found = re.findall(r"(\d+) bytes spill (?:stores|loads)", said)
    assert len(found) == 2, f"ptxas says {said!r}"
    return sum(map(int, found))


@pytest.mark.parametrize("sm", [80, 90])
@pytest.mark.parametrize(("dtype", "m"), [("bfloat16", 16), ("bfloat16", 128), ("float16", 16), ("float32", 128)])
@pytest.mark.parametrize(("kernel", "op", "pattern"), CASES, ids=[str(case[2]) for case in CASES])
def test_the_default_tile_compiles_without_spills(
    kernel: Any, op: str, pattern: Pattern, dtype: str, m: int, sm: int, tmp_path: Path
) -> None:
    tile = parse_tile(LINEAR_OPS[op].kernel("triton").configs(problem(op, pattern, dtype, m))[0])
    binary = compiled(kernel, pattern, dtype, sm, tile)
    assert ("mma" in binary.asm["ptx"]) == (dtype != "float32"), "the tensor cores are for 16-bit floats"
    assert "tf32" not in binary.asm["ptx"], "float32 must stay float32"
    assert binary.metadata.shared <= 99 * 1024, "not every card has so much shared memory"
    assert spilled_bytes(binary.asm["ptx"], tmp_path) == 0


@pytest.mark.parametrize("sm", [80, 90])
@pytest.mark.parametrize(("dtype", "m"), [("bfloat16", 16), ("float16", 128)])
def test_kernels_in_e4m3_compile_without_spills_and_without_8_bit_products(
    dtype: str, m: int, sm: int, tmp_path: Path
) -> None:
    """Where sm_80 has no 8-bit floats at all, and is no poorer for it: bytes are the gain."""
    wanted = problem("scaled_nm_linear", NM(2, 4), dtype, m)
    tile = parse_tile(LINEAR_OPS["scaled_nm_linear"].kernel("triton").configs(wanted)[0])
    binary = compiled(scaled_triton.scaled_nm_linear, NM(2, 4), dtype, sm, tile)
    assert "mma" in binary.asm["ptx"]
    assert "e4m3" not in binary.asm["ptx"]
    assert spilled_bytes(binary.asm["ptx"], tmp_path) == 0
    signature = {"x": f"*{SHORT[dtype]}", "rounded": f"*{SHORT[dtype]}", "k": "i32", "stride": "i32"}
    constants = {"LOW": -15, "HIGH": 7, "CHUNK": 1024}
    source = ASTSource(scaled_triton.round_rows, {**signature, **dict.fromkeys(constants, "constexpr")}, constants)
    assert spilled_bytes(triton.compile(source, target=GPUTarget("cuda", sm, 32)).asm["ptx"], tmp_path) == 0
