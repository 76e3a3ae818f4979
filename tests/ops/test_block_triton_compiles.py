"""The Triton kernels of block-sparse layers, compiled ahead of time for sm_80 and sm_90: registers and instructions.

Needs no GPU.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from ajour.terms.pattern import Block
from ajour.terms.problem import Problem

triton = pytest.importorskip("triton", reason="Triton is not installed", exc_type=ImportError)

from test_triton_compiles import SHORT, spilled_bytes  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from ajour.ops.block_linear import triton_kernel as linear  # noqa: E402
from ajour.ops.block_linear.triton_configs import Config, configs, parse  # noqa: E402
from ajour.ops.block_sddmm import triton_configs as sddmm_configs  # noqa: E402
from ajour.ops.block_sddmm import triton_kernel as sddmm  # noqa: E402

MOST_SHARED = {80: 163 * 1024, 90: 227 * 1024}  # bytes that one program may have
INDICES = ("offsets", "places", "order", "schedule", "row_offsets", "block_columns", "block_rows")
BLOCKS = (Block(16, 16), Block(32, 32), Block(64, 64), Block(128, 128), Block(128, 32), Block(16, 128))


def compiled(kernel: Any, floats: str, fixed: dict[str, Any], special: dict[str, str], sm: int, **options: int) -> Any:
    """As at run time: torch's pointers and sizes are multiples of 16, m is anything."""
    kinds = dict.fromkeys(INDICES, "*i32") | special
    kinds |= dict.fromkeys(("y", "dy", "gradient", "bias", "residual"), f"*{floats}")
    signature = {name: "constexpr" if name in fixed else kinds.get(name, "i32") for name in kernel.arg_names}
    aligned = {
        (place,): [["tt.divisibility", 16]]
        for place, (name, kind) in enumerate(signature.items())
        if kind != "constexpr" and not kind.startswith("tensordesc") and name != "m"
    }
    source = ASTSource(kernel, signature, constexprs=fixed, attrs=aligned)
    return triton.compile(source, target=GPUTarget("cuda", sm, 32), options=options)


def product(pattern: Block, dtype: str, config: Config, transposed: bool, sm: int) -> Any:
    out, deep = (pattern.cols, pattern.rows) if transposed else (pattern.rows, pattern.cols)
    config, floats = config.within(out, deep), SHORT[dtype]
    tile = config.tile
    fixed: dict[str, Any] = {
        **{"ROWS": pattern.rows, "COLS": pattern.cols, "TRANSPOSED": transposed, "GROUP": linear.GROUP_M},
        **{"TILE_M": tile.m, "TILE_N": tile.n, "TILE_K": tile.k, "TMA": config.tma},
        **{"PRECISION": "tf32" if config.tf32 else "ieee", "ACTIVATION": "none" if transposed else "gelu"},
    }
    fixed |= {"bias": None, "residual": None} if transposed else {"order": None}
    special = {"x": f"*{floats}", "blocks": f"*{floats}"}
    if config.tma:
        box = (tile.k, tile.n) if transposed else (tile.n, tile.k)
        special = {"x": f"tensordesc<{floats}[{tile.m}, {tile.k}]>", "blocks": f"tensordesc<{floats}{[*box]}>"}
    return compiled(
        linear.block_linear, floats, fixed, special, sm, num_warps=tile.warps, num_stages=tile.stages
    )  # fmt: skip


def problem(pattern: Block, dtype: str, m: int, sm: int) -> Problem:
    return Problem("block_linear", pattern, m, 4096, 4096, dtype, "cuda", (sm // 10, sm % 10), 0.1, "gelu")


def check(binary: Any, dtype: str, sm: int, tokens: int, folder: Path) -> str:
    """No spills, room in shared memory, tensor cores for 16-bit floats only."""
    ptx: str = binary.asm["ptx"]
    assert spilled_bytes(ptx, folder) == 0
    assert binary.metadata.shared <= MOST_SHARED[sm]
    if dtype == "float32":
        assert not re.search(r"mma\.sync|wgmma", ptx), "float32 must stay float32"
    elif sm == 90 and tokens >= 64:
        assert "wgmma.mma_async" in ptx
    else:
        assert "mma.sync" in ptx
    return ptx


@pytest.mark.parametrize("sm", [80, 90])
@pytest.mark.parametrize(("dtype", "m"), [("bfloat16", 16), ("float16", 8192), ("float32", 128)])
@pytest.mark.parametrize("pattern", BLOCKS, ids=str)
def test_the_first_configuration_keeps_everything_in_registers(
    pattern: Block, dtype: str, m: int, sm: int, tmp_path: Path
) -> None:
    turned = Block(pattern.cols, pattern.rows)
    for transposed in (False, True):  # dx goes by a configuration for the turned weight
        config = parse(configs(problem(turned if transposed else pattern, dtype, m, sm))[0])
        ptx = check(product(pattern, dtype, config, transposed, sm), dtype, sm, config.tile.m, tmp_path)
        deep = pattern.rows if transposed else pattern.cols
        by_descriptor = sm == 90 and dtype != "float32" and deep >= 64
        assert ("cp.async.bulk.tensor" in ptx) == by_descriptor
        assert by_descriptor or "cp.async.ca" in ptx or "cp.async.cg" in ptx, "loads run ahead of the products"


@pytest.mark.parametrize("sm", [80, 90])
@pytest.mark.parametrize("pattern", [Block(16, 16), Block(64, 64)], ids=str)
def test_every_configuration_for_many_rows_keeps_everything_in_registers(
    pattern: Block, sm: int, tmp_path: Path
) -> None:
    for config in map(parse, configs(problem(pattern, "bfloat16", 8192, sm))):
        ptx = check(product(pattern, "bfloat16", config, False, sm), "bfloat16", sm, 64, tmp_path)
        assert ("cp.async.bulk.tensor" in ptx) == config.tma


def test_tf32_uses_the_tensor_cores_only_where_it_was_asked_for(tmp_path: Path) -> None:
    binary = product(Block(64, 64), "float32", parse("m64 n64 k32 w8 s3 tf32"), False, 90)
    assert "tf32" in binary.asm["ptx"]
    assert spilled_bytes(binary.asm["ptx"], tmp_path) == 0
    for m in (16, 8192):
        assert not any("tf32" in config for config in configs(problem(Block(64, 64), "float32", m, 90)))


@pytest.mark.parametrize("sm", [80, 90])
@pytest.mark.parametrize(
    ("pattern", "dtype"),
    [*((each, "bfloat16") for each in BLOCKS), (BLOCKS[2], "float16"), *((each, "float32") for each in BLOCKS[1:5:3])],
    ids=str,
)
def test_every_configuration_of_sddmm_keeps_everything_in_registers(
    pattern: Block, dtype: str, sm: int, tmp_path: Path
) -> None:
    floats = SHORT[dtype]
    found = [sddmm_configs.parse(text) for text in sddmm_configs.configs(problem(pattern, dtype, 8192, sm))]
    for config in {(c.tokens, c.together, c.warps, c.stages): c for c in found}.values():  # shares change no code
        fixed = {"ROWS": pattern.rows, "COLS": pattern.cols, "TILE_M": config.tokens, "TOGETHER": config.together}
        fixed |= {"TILE_N": pattern.rows, "SIDE": pattern.cols, "ADD": True}
        binary = compiled(
            sddmm.block_sddmm, floats, fixed, {"x": f"*{floats}"}, sm, num_warps=config.warps, num_stages=config.stages
        )  # fmt: skip
        check(binary, dtype, sm, 64, tmp_path)
