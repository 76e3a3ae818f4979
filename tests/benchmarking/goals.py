"""A target to change one field of."""

from __future__ import annotations

from typing import Any

from benchmarks.targets import Target


def target(**changes: Any) -> Target:
    """A gain of 2, better 4, in the geometric mean of all rows of the ops suite on a CPU."""
    fields = {"name": "t", "suite": "ops", "device": "cpu", "where": {}, "metric": "speedup", "aggregate": "geomean"}
    return Target(**{**fields, "floor": 2.0, "ambition": 4.0, **changes})
