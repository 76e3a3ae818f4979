"""The examples run, tell their story, and hold what they say: zeros that stay, and quality that converting keeps."""

from __future__ import annotations

import importlib.util
from io import StringIO
from pathlib import Path
from types import ModuleType

import pytest
from rich.console import Console

from ajour.terms.pattern import NM, Block, Pattern, Unstructured

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("pattern", "density"), [(Block(16, 16), 0.15), (Unstructured(), 0.05)], ids=str)
def test_the_digits_recover_with_their_zeros_held_and_convert_without_loss(pattern: Pattern, density: float) -> None:
    said = StringIO()
    found = load("digits_mlp").run(Console(file=said, width=160), pattern, density, epochs=4, margin=float("-inf"))
    dense, pruned, trained, control, converted = found.values()
    assert dense > 0.9
    assert pruned < dense - 0.05
    assert trained > pruned + 0.05
    assert control > 0.9
    assert abs(converted - trained) <= 1 / 449, "at most one digit on the edge"
    assert "3 become sparse" in said.getvalue()
    assert all(f"{what:<42} {share:7.2%}" in said.getvalue() for what, share in found.items())


def test_without_scikit_learn_the_digits_example_says_in_one_line_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=r"^the digits come with scikit-learn; install it with: pip install .*$"):
        load("digits_mlp").digits()


def test_the_minilm_example_runs_from_end_to_end() -> None:
    said = StringIO()
    try:
        found = load("finetune_minilm").run(
            Console(file=said, width=160), NM(2, 4), None, steps=2, batch=4, length=16, margin=float("-inf")
        )
    except SystemExit as refusal:
        pytest.fail(f"{refusal}\n{said.getvalue()}")
    dense, pruned, trained, control, converted = found.values()
    assert len({dense, pruned, trained, control}) == 4
    assert all(0.2 < quality < 1 for quality in found.values())
    assert converted == pytest.approx(trained, abs=1e-3)
    assert "36 become sparse" in said.getvalue()
