"""diagnose: runs on any machine, and tests every kernel that it can."""

from __future__ import annotations

from ajour.diagnosis import diagnose
from ajour.ops import BLOCK_SDDMM, LINEAR_OPS
from ajour.ops.masked_update.op import MASKED_ADAMW, MASKED_SGD


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
