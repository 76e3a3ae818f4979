"""The README's first code does what it says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import ajour
from factories import pruned

README = Path(__file__).resolve().parent.parent / "README.md"


def test_the_first_code_of_the_readme_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code = re.search(r"^```python\n(.*?)^```$", README.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    assert code is not None, "the README has no python block"
    monkeypatch.chdir(tmp_path)
    example = torch.randn(8, 64)
    expected = pruned()(example)
    names: dict[str, object] = {"model": pruned().eval(), "example": example}
    exec(compile(code[1], str(README), "exec"), names)
    assert "2 layers: 2 with zeros" in capsys.readouterr().out
    model, plan = names["model"], names["plan"]
    assert isinstance(model, torch.nn.Module)
    assert isinstance(plan, ajour.Plan)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
    loaded = ajour.load("model.safetensors", pruned())
    assert torch.equal(loaded(example), model(example))
    torch.testing.assert_close(loaded(example), expected, rtol=1e-5, atol=1e-5)
