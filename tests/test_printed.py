"""A report is a table where it fits, and cards where a terminal is too narrow for that; nothing is lost."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import rich.console
import torch
from torch import nn

import ajour
from factories import pruned


def _terminal(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    monkeypatch.setattr(rich.console.Console, "is_terminal", True)
    monkeypatch.setenv("COLUMNS", str(width))


REPORTS: list[Callable[[], Any]] = [
    lambda: ajour.inspect(pruned()),
    lambda: ajour.project(pruned(), ajour.NM(1, 4)),
    lambda: ajour.verify(
        ajour.convert(pruned(), ajour.plan(pruned(), None, rows=[4], margin=float("-inf"), progress=False)),
        pruned(),
        torch.randn(4, 64),
    ),
]


@pytest.mark.parametrize("make", REPORTS, ids=["inspect", "project", "verify"])
def test_a_narrow_terminal_gets_cards_with_all_that_the_table_says(
    make: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    report = make()
    table = str(report)
    assert "─" in table
    _terminal(monkeypatch, 60)
    cards = str(report)
    assert "─" not in cards
    assert max(map(len, cards.splitlines())) <= 60
    assert set(table.replace("─", " ").split()) - {"layer"} <= set(cards.replace(" · ", " ").split())
    _terminal(monkeypatch, 300)
    assert "─" in str(report)


def test_a_long_name_is_folded_and_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    inner: nn.Module = nn.Linear(8, 8)
    for _ in range(20):
        inner = nn.ModuleDict({"attention": inner})
    _terminal(monkeypatch, 40)
    found = str(ajour.inspect(inner))
    assert max(map(len, found.splitlines())) <= 40
    assert ".".join(["attention"] * 20) in found.replace("\n", "")
