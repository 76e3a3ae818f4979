"""A self-test: one kernel on every problem that it takes, its errors held against the allowed ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ajour.diagnosis.findings import Finding
from ajour.diagnosis.packages import first_line
from ajour.planning.measuring import FAILURES

REPORT = "never use this kernel here; please report this line with the ones above"

Case = tuple[str, str | None, Callable[[], float]]  # what it is, why it is not taken, its error over the allowed one


def self_test(subject: str, cases: Iterator[Case]) -> Finding:
    """One kernel on every problem that it takes; a right answer's error is at most the allowed one."""
    reasons, right = [], 0
    for what, reason, measure in cases:
        if reason:
            reasons.append(reason)
            continue
        try:
            ratio = measure()
        except FAILURES as error:
            return Finding(subject, "broken", f"failed at {what}: {first_line(error)}", REPORT)
        if not ratio <= 1:
            return Finding(subject, "broken", f"wrong at {what}: {ratio:.3g} times the allowed error", REPORT)
        right += 1
    if not right:
        return Finding(subject, "absent", reasons[0])
    return Finding(subject, "ok", f"self-test right, {right} problems")
