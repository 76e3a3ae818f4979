"""Findings read well: a remedy beside its problem, and what this machine could not use in one line."""

from __future__ import annotations

import json

from ajour.diagnosis import Diagnosis, Finding

FINE = Finding("torch", "ok", "9.9")
MISSING = Finding("Triton", "absent", "not installed", "pip install it")
BROKEN = Finding("nm_linear · cpu (cpu)", "broken", "wrong at 2:4", "report it")
ELSEWHERE = tuple(Finding(f"nm_linear · {name} (cpu)", "absent", "it runs on CUDA") for name in ("triton", "cuda"))


def test_a_remedy_stands_in_the_line_of_its_problem() -> None:
    assert "Triton  not installed → pip install it" in str(Diagnosis((MISSING,)))


def test_what_is_broken_is_counted_and_decides() -> None:
    assert Diagnosis((FINE, MISSING)).ok
    assert "nothing is broken" in str(Diagnosis((FINE, MISSING)))
    assert not Diagnosis((FINE, BROKEN)).ok
    assert "1 of 2 are broken" in str(Diagnosis((FINE, BROKEN)))


def test_kernels_for_other_devices_share_a_line_and_stand_alone_in_json() -> None:
    found = Diagnosis((FINE, *ELSEWHERE))
    assert "·  not for this machine  nm_linear · triton (cpu), nm_linear · cuda (cpu)\n" in str(found)
    assert "it runs on CUDA" not in str(found)
    assert [each["found"] for each in json.loads(found.to_json())["findings"]] == ["9.9", *["it runs on CUDA"] * 2]
