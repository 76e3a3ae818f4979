"""masked_adamw and masked_sgd in Triton compile ahead of time for sm_80 and sm_90 without spills. Needs no GPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ajour.ops.masked_update.update import CHUNK, STATES

triton = pytest.importorskip("triton", reason="Triton is not installed", exc_type=ImportError)

from test_triton_compiles import spilled_bytes  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from ajour.ops.masked_update import triton_kernel  # noqa: E402

CASES = [
    ("adamw", torch.float32, False, False),
    ("adamw", torch.bfloat16, False, True),
    ("amsgrad", torch.bfloat16, True, False),
    ("sgd", torch.float16, True, False),
    ("momentum", torch.float32, False, False),
]


@pytest.mark.parametrize("sm", [80, 90])
@pytest.mark.parametrize(("rule", "dtype", "master", "stochastic"), CASES, ids=lambda part: str(part))
def test_it_compiles_without_spills(
    rule: str, dtype: torch.dtype, master: bool, stochastic: bool, sm: int, tmp_path: Path
) -> None:
    fixed = {
        "RULE": rule, "NUM_STATES": len(STATES[rule]), "MASTER": master, "STOCHASTIC": stochastic,
        "TYPE": triton_kernel.TYPES[dtype], "CHUNK_SIZE": CHUNK, "BLOCK_SIZE": triton_kernel.BLOCK,
        "ROW_WORDS": triton_kernel.WORDS, "ROW_COLUMNS": triton_kernel.COLUMNS,
    }  # fmt: skip
    kinds = {"rows": "*i64", "chunk_rows": "*i32", "coefficients": "*fp32", "grad_scale": "*fp32", "found_inf": "*fp32"}
    kernel = triton_kernel.masked_update
    signature = {name: "constexpr" if name in fixed else kinds[name] for name in kernel.arg_names}
    aligned = {(place,): [["tt.divisibility", 16]] for place in range(len(kinds))}
    source = ASTSource(kernel, signature, constexprs=fixed, attrs=aligned)
    binary = triton.compile(source, target=GPUTarget("cuda", sm, 32), options={"num_warps": triton_kernel.WARPS})
    assert spilled_bytes(binary.asm["ptx"], tmp_path) == 0
