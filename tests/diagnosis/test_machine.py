"""What the doctor says of the machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from ajour.diagnosis import machine


@pytest.mark.parametrize(
    ("text", "status", "detail"),
    [
        ("always [madvise] never\n", "ok", "madvise"),
        ("always madvise [never]\n", "absent", "never"),
        (None, "absent", "this system does not say"),
    ],
)
def test_huge_pages_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | None, status: str, detail: str
) -> None:
    if text is not None:
        (tmp_path / "enabled").write_text(text)
    monkeypatch.setattr(machine, "_HUGE_PAGES", tmp_path / "enabled")
    [found] = [each for each in machine.look() if each.subject == "huge pages"]
    assert found.status == status
    assert found.found.startswith(detail)
    assert ("echo madvise >" in found.remedy) == (detail == "never")
