"""What the device at hand can do is measured for each dtype once, and a bar says what is at work."""

from __future__ import annotations

import io

import pytest
import torch

from ajour.planning import progress
from ajour.roofline import measured
from ajour.roofline.formula import Limits


def test_a_bar_names_what_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    out, real, told = io.StringIO(), progress.Console, []
    monkeypatch.setattr(progress, "Console", lambda stderr: real(file=out, force_terminal=True, width=120))
    update = progress.Progress.update
    monkeypatch.setattr(
        progress.Progress, "update", lambda self, *a, **k: (told.append(k.get("description")), update(self, *a, **k))
    )
    monkeypatch.setattr(measured, "measured", lambda dtype, *rest: Limits(40e3, float(dtype.itemsize), 1.0))
    facts = measured.facts_of(torch.device("cpu"), [torch.float32, torch.bfloat16, torch.float32])
    assert facts.rates == {"float32": 4.0, "bfloat16": 2.0}
    assert [text for text in told if text] == [
        f"measuring the bandwidth and the rate of {name} products" for name in ("float32", "bfloat16")
    ]
    assert out.getvalue()


def test_without_a_terminal_nothing_is_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(measured, "measured", lambda *rest: Limits(40e3, 1.0, 1.0))
    measured.facts_of(torch.device("cpu"), [torch.float32])
    assert capsys.readouterr() == ("", "")
