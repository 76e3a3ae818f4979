"""The tokens suite works in a small size, and checks what it times."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from benchmarks import tokens
from benchmarks.llama import SMOKE, decoder

from ajour.planning.timing import Side
from ajour.terms.pattern import NM

CPU = torch.device("cpu")


def test_a_model_is_decoded_dense_and_converted_and_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    def told(side: Side, first: int, count: int) -> float:
        side.calls[0]()
        return 10.0 if side.name in ("dense", "aten", "onednn") else 5.0

    monkeypatch.setattr("ajour.planning.planner.timer_for", lambda device: told)
    monkeypatch.setattr(tokens, "timer_for", lambda device: told)
    plans: list[Any] = []
    ((name, rows),) = list(tokens.run(tokens.smoke_subjects(), [1], CPU, 0.01, plans.append))
    assert name == "Llama smoke 2:4"
    assert [row["batch"] for row in rows] == [1, 4]
    for row in rows:
        assert 0 < row["error_ratio"] <= 1
        assert row["speedup"] == 2.0
        assert row["sparse_tokens_per_second"] == 2 * row["dense_tokens_per_second"]
        assert row["sparse_bytes"] < row["dense_bytes"]
    assert {choice.layer.split(".")[0] for choice in plans[0].choices if choice.stored == NM(2, 4)} == {"blocks"}


def test_the_model_is_the_same_in_every_run_and_leaves_the_random_state() -> None:
    state = torch.get_rng_state()
    first, again = (decoder(SMOKE, CPU, torch.float32) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    token = torch.tensor([[3], [5]])
    torch.testing.assert_close(first(token), again.exact(token).float(), rtol=1e-4, atol=1e-4)


def test_the_patterns_are_those_of_the_targets() -> None:
    assert [(str(s.pattern), s.density) for s in tokens.subjects()] == [
        ("2:4", None),
        ("unstructured", 0.5),
        ("unstructured", 0.3),
        ("unstructured", 0.1),
    ]
