"""diagnose: runs on any machine, and tests every kernel that it can."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from ajour import diagnosis
from ajour.diagnosis import diagnose
from ajour.ops import BLOCK_SDDMM, LINEAR_OPS, NM_LINEAR
from ajour.ops.masked_update.op import MASKED_ADAMW, MASKED_SGD
from ajour.ops.masked_update.update import Update, UpdateOp


def test_every_kernel_that_runs_here_gives_right_answers() -> None:
    found = diagnose()
    assert found.ok, str(found)
    assert "self-test" in str(found)
    assert '"ok": true' in found.to_json()
    subjects = {finding.subject for finding in found.findings}
    assert {f"{op.name} · {name} (cpu)" for op in LINEAR_OPS.values() for name in op.kernels} <= subjects
    assert {f"block_sddmm · {name} (cpu)" for name in BLOCK_SDDMM.kernels} <= subjects
    status = {finding.subject: finding.status for finding in found.findings}
    for op in (MASKED_ADAMW, MASKED_SGD):
        assert status[f"{op.name} · cpu (cpu)"] == "ok"
        assert status[f"{op.name} · cuda (cpu)"] == status[f"{op.name} · triton (cpu)"] == "absent"
    tested = [finding for finding in found.findings if "self-test right" in finding.found]
    assert len(tested) > 10


def test_a_wrong_kernel_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = NM_LINEAR.kernels["reference"]
    wrong = replace(kernel, run=lambda *args: kernel.run(*args) * 1.01)
    monkeypatch.setitem(NM_LINEAR.kernels, "reference", wrong)
    found = diagnose()
    assert not found.ok
    (broken,) = (finding for finding in found.findings if finding.status == "broken")
    assert broken.subject == "nm_linear · reference (cpu)"
    assert broken.found.startswith("wrong at 2:4, float32, 1 rows: ")
    assert broken.remedy
    assert "1 of " in str(found)


def test_a_kernel_that_fails_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> torch.Tensor:
        raise RuntimeError("no such instruction\nand more")

    monkeypatch.setitem(NM_LINEAR.kernels, "reference", replace(NM_LINEAR.kernels["reference"], run=fail))
    (broken,) = (finding for finding in diagnose().findings if finding.status == "broken")
    assert broken.found == "failed at 2:4, float32, 1 rows: no such instruction"


def test_a_wrong_gradient_at_the_live_blocks_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = BLOCK_SDDMM.kernels["reference"]

    def wrong(gradient: torch.Tensor, *args: object) -> None:
        kernel.run(gradient, *args)
        gradient.mul_(1.01)

    monkeypatch.setitem(BLOCK_SDDMM.kernels, "reference", replace(kernel, run=wrong))
    (broken,) = (finding for finding in diagnose().findings if finding.status == "broken")
    assert broken.subject == "block_sddmm · reference (cpu)"
    assert broken.found.startswith("wrong at block 32x32, float32, 1 rows: ")


@pytest.mark.parametrize("op", [MASKED_ADAMW, MASKED_SGD], ids=lambda op: op.name)
@pytest.mark.parametrize("place", ["weight", "state"])
def test_a_wrong_update_is_found(op: UpdateOp, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = op.kernels["cpu"]

    def wrong(update: Update) -> None:
        kernel.run(update)
        last = update.slices[-1]
        (last.weight if place == "weight" else last.states[-1]).mul_(1.1)

    monkeypatch.setitem(op.kernels, "cpu", replace(kernel, run=wrong))
    (broken,) = (finding for finding in diagnose().findings if finding.status == "broken")
    assert broken.subject == f"{op.name} · cpu (cpu)"
    assert broken.found.startswith("wrong at float32, compact: False: ")


def test_a_remedy_stands_in_the_line_of_its_problem() -> None:
    missing = diagnosis.Finding("Triton", "absent", "not installed", "pip install it")
    assert "Triton  not installed → pip install it" in str(diagnosis.Diagnosis((missing,)))
