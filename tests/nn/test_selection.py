"""A configuration that this build can't run is refused where a plan is applied, not at the first forward."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import ajour
from ajour.formats import NMMatrix, SparseMatrix
from ajour.nn import BlockLinear, NMLinear, linear_of, selection
from ajour.ops import BLOCK_LINEAR, BLOCK_SDDMM, LINEAR_OPS, NM_LINEAR, sm90
from ajour.ops.functional import problem_of
from ajour.ops.library import LinearOp
from ajour.planning.plan import RowChoice
from ajour.terms.errors import ConversionError, KernelError, PlanError
from ajour.terms.kernel import Kernel
from ajour.terms.pattern import NM, Block, Dense, Unstructured
from forced import plan_for, pruned, state_of
from pruned import matrix_of

PATTERNS = {
    "nm_linear": NM(2, 4), "scaled_nm_linear": NM(2, 4), "block_linear": Block(16, 16), "dense_linear": Dense(),
    "bitmap_linear": Unstructured(), "split_linear": Unstructured(),
}  # fmt: skip
KERNELS = [(op, kernel) for op in LINEAR_OPS.values() for kernel in op.kernels.values()]
BUILT, WANTED = "256x128x128_2x1", "128x256x128_2x1"


def matrix_for(op: LinearOp) -> SparseMatrix:
    """A small weight in bfloat16 that the op's format holds."""
    w = torch.ones(32, 64).bfloat16() * (torch.arange(64) % 4 < 2)
    return op.matrix.from_dense(w, PATTERNS[op.name])


def willing(op: LinearOp, kernel: Kernel) -> LinearOp:
    """The op with this kernel alone, which takes every problem on every device."""
    return replace(op, kernels={kernel.name: replace(kernel, why_not=lambda problem: None)})


def names(case: object) -> str:
    return case.name if isinstance(case, LinearOp | Kernel) else str(case)


@pytest.mark.parametrize(("op", "kernel"), KERNELS, ids=names)
def test_every_kernel_refuses_a_configuration_that_is_none_and_takes_its_own(op: LinearOp, kernel: Kernel) -> None:
    matrix, alone = matrix_for(op), willing(op, kernel)
    for wrong in ("nonsense", "m16 n16", "c2 s4 s4", "256x128x128_2x1"):
        refusal = selection.why_not(alone, matrix, "none", [(None, kernel.name, wrong)])
        assert refusal is not None
        assert refusal.startswith(f"kernel '{kernel.name}' can't run its configuration: ")
        assert wrong in refusal
    for m in (1, 64, 4096):
        if op.kernel(kernel.name).why_not(replace(problem_of(matrix, m), device="cuda", capability=(9, 0))):
            continue  # some list configurations only for what they take
        for config in ("", *kernel.configs(problem_of(matrix, m))):
            assert selection.why_not(alone, matrix, "none", [(None, kernel.name, config)]) is None


def test_the_configurations_of_a_plan_are_read_without_regard_to_rows() -> None:
    """Between two measured numbers of rows the larger one's choice holds: it serves rows that it was not listed for."""
    op = LINEAR_OPS["bitmap_linear"]
    matrix = matrix_of(torch.eye(256), Unstructured())
    assert "128" not in op.kernel("cpu_chunked").configs(problem_of(matrix, 1))
    assert selection.why_not(op, matrix, "none", [(8, "cpu_chunked", "128"), (None, "cpu_chunked", "256")]) is None
    refusal = selection.why_not(op, matrix, "none", [(None, "cpu_chunked", "64")])
    assert refusal == "kernel 'cpu_chunked' can't run its configuration: '64' is none of those it has here: 256, 128"


def test_a_layer_is_not_built_with_it() -> None:
    matrix = NMMatrix.from_dense(torch.eye(8), NM(2, 4))
    with pytest.raises(KernelError, match="nm_linear: kernel 'reference' can't run its configuration: 'fast' is none"):
        linear_of(matrix, choices=[(None, "reference", "fast")])


@pytest.fixture
def two_tiles(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, tuple[str, ...]]]:
    """A build with two tiles of cuda_sm90, which takes layers of the CPU."""
    built = {"bfloat16": (BUILT, WANTED), "float16": (), "e4m3": ()}
    kernel = NM_LINEAR.kernels["cuda_sm90"]
    monkeypatch.setitem(NM_LINEAR.kernels, "cuda_sm90", replace(kernel, why_not=lambda problem: None))
    monkeypatch.setattr(sm90, "native", type("Native", (), {"sm90_configs": built}))
    sm90.parse.cache_clear()
    yield built
    sm90.parse.cache_clear()


def test_a_plan_of_a_larger_build_is_refused_when_it_is_applied(
    two_tiles: dict[str, tuple[str, ...]], tmp_path: Path
) -> None:
    """By convert and by load, which name the layer, the kernel, what it asks for, what there is and what to do."""
    model = pruned(nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 16)).bfloat16(), NM(2, 4))
    plan = plan_for(model, NM(2, 4), (RowChoice(64, "reference"), RowChoice(None, "cuda_sm90", f"{WANTED} tiles w2")))
    held = {name: value.clone() for name, value in model.state_dict().items()}
    ajour.save(ajour.convert(model, plan), tmp_path / "model.safetensors")
    assert isinstance(model[0], NMLinear)

    two_tiles["bfloat16"] = (BUILT,)
    sm90.parse.cache_clear()
    said = (
        rf"kernel 'cuda_sm90' can't run its configuration: this build has no {WANTED} for bfloat16, which "
        rf"'{WANTED} tiles w2' asks for, it has {BUILT}; build with AJOUR_SM90_CONFIGS=ALL for all of them; "
    )
    dense = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 16)).bfloat16()
    dense.load_state_dict(held)
    before = state_of(dense)
    with pytest.raises(ConversionError, match=rf"^layer '0': {said}plan again on this device$"):
        ajour.convert(dense, plan)
    assert state_of(dense) == before
    with pytest.raises(PlanError, match=rf"^layer '0': nm_linear: {said}give load a plan= made here, or plan=an examp"):
        ajour.load(tmp_path / "model.safetensors", dense)
    assert state_of(dense) == before


PARTS = "m128 n64 k64 w8 s3 / m64 n64 k64 w4 s3 / t64 g1 w4 s3 p2"
DAMAGED = {
    "m128 n64 k64 w8 s3 / m65 n64 k64 w4 s3": "'m65 n64 k64 w4 s3' is no Triton tile: sides and warps",
    "m128 n64 k64 w8 s3 / m64 n64 k64 w4 s99": "has 1 to 32 warps and 1 to 16 stages",
    "m128 n64 k64 w8 s3 / m64 n64 k64 w64 s3": "has 1 to 32 warps and 1 to 16 stages",
    "m128 n64 k64 w8 s3 / m64 n64 k64 w4 s3 tma": "needs? compute capability 9.0, this device has 8.0",
    "m128 n64 k64 w8 s3 / m64 n64 k64 w4 s3 / fast": "'fast' is no configuration of block_sddmm",
    "m128 n64 k64 w8 s3 / m64 n64 k64 w4 s3 / t8 g1 w4 s3 p1": "'t8 g1 w4 s3 p1' can't run: tokens, blocks and warps",
    "m128 n64 k64 w8 s3 / m64 n64 k64 w4 s3 / t64 g3 w4 s3 p1": "can't run: tokens, blocks and warps are powers of two",
    "m128 n64 k64 w8 s3 / m64 n64 k64 w4 s3 / t64 g1 w4 s3 p99": "at most 32 warps, 16 stages and 16 shares",
    "m128 n64 k64 w8 s3 / m64 n64 k64 w4 s3 / t4096 g1 w4 s3 p1": "its tiles of block 16x16 exceed shared memory",
    f"{PARTS} / again": "has more parts than a layer has products: forward / dx / dw",
}


@pytest.fixture
def triton_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton's kernels for training take layers of the CPU, as those of an A100."""
    pytest.importorskip("triton", reason="Triton is not installed", exc_type=ImportError)
    for op in (BLOCK_LINEAR, BLOCK_SDDMM):
        monkeypatch.setitem(
            op.kernels, "triton_blocks", replace(op.kernels["triton_blocks"], why_not=lambda problem: None)
        )
    monkeypatch.setattr(selection, "problem_of", lambda *args: replace(problem_of(*args), capability=(8, 0)))


@pytest.mark.parametrize("config", DAMAGED)
def test_a_damaged_part_of_a_trained_layers_configuration_is_refused_wherever_it_is_met(
    config: str, triton_here: None, tmp_path: Path
) -> None:
    model = pruned(nn.Sequential(nn.Linear(32, 64)), Block(16, 16))
    right, wrong = (plan_for(model, Block(16, 16), (RowChoice(None, "triton_blocks", c),)) for c in (PARTS, config))
    said = rf"kernel 'triton_blocks' can't run its configuration: .*{DAMAGED[config]}"
    matrix = matrix_of(model[0].weight.detach(), Block(16, 16))
    with pytest.raises(KernelError, match=said):
        BlockLinear(matrix, choices=[(None, "triton_blocks", config)], trainable=True)
    before = state_of(model)
    with pytest.raises(ConversionError, match=f"^layer '0': {said}"):
        ajour.convert(model, wrong, trainable=True)
    assert state_of(model) == before
    ajour.save(ajour.convert(model, right, trainable=True), tmp_path / "model.safetensors")
    assert model[0].kernels.endswith(f"| * triton_blocks 0:6 {PARTS}")
    loaded = ajour.load(tmp_path / "model.safetensors", nn.Sequential(nn.Linear(32, 64)))
    assert loaded[0].kernels == model[0].kernels
    with pytest.raises(PlanError, match=f"^layer '0': block_linear: {said}"):
        ajour.load(tmp_path / "model.safetensors", nn.Sequential(nn.Linear(32, 64)), plan=wrong)
