"""The layers of a plan as a table of a page: what was chosen for each, its times and sizes, and why."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from ajour.comparison.document import table
from ajour.planning.plan import Choice

HEAD = ("layer", "shape", "pattern", "kept", "choice", "dense → planned, µs", "weight, kB", "why")


def layer_table(choices: Sequence[Choice]) -> str:
    """Every layer by name."""
    return table(HEAD, [_layer(choice) for choice in choices], why=True)


def _layer(choice: Choice) -> list[str]:
    times = "<br>".join(
        f"{m.dense_us:,.0f} → {choice.chosen_us(m):,.0f} <small>at {m.rows} row{'s' if m.rows > 1 else ''}"
        f"{'' if m.steady else ', unsteady'}</small>"
        for m in choice.measurements
    )
    chosen = "<br>".join(
        f"{escape(f'{entry.kernel} {entry.config}'.strip())} <small>{_until(entry.limit, len(choice.kernels))}</small>"
        for entry in choice.kernels
    )
    kept = "" if choice.density is None else f"{choice.density:.0%}"
    return [
        escape(choice.layer or "(the model)"), "x".join(map(str, choice.shape)), escape(str(choice.pattern or "")),
        kept, chosen or "as it is", times, f"{choice.dense_bytes / 1e3:,.0f} → {choice.sparse_bytes / 1e3:,.0f}",
        escape(choice.reason),
    ]  # fmt: skip


def _until(limit: int | None, entries: int) -> str:
    if limit is None:
        return "above" if entries > 1 else ""
    return f"to {limit} row{'s' if limit > 1 else ''}"
