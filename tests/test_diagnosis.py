"""diagnose: runs on any machine, and tests every kernel that it can."""

from __future__ import annotations

from ajour.diagnosis import diagnose


def test_every_kernel_that_runs_here_gives_right_answers() -> None:
    found = diagnose()
    assert found.ok, str(found)
    assert "self-test" in str(found)
    assert '"ok": true' in found.to_json()
