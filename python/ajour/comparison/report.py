"""A comparison as a page that people like to read, and as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from io import StringIO
from typing import TYPE_CHECKING

from ajour.comparison.layer_times import Breakdown
from ajour.comparison.sides import CONVERTED, DENSE, LABELS, STOCK
from ajour.planning.plan import Plan
from ajour.planning.report import NUMBER, nothing_to_gain, readable_bytes
from ajour.planning.timing import Timing, differ
from ajour.verification import Report

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
    from rich.table import Table

WIDTH = 120
REST = "everything else"


@dataclass(frozen=True)
class Size:
    """One size of the input: what one pass takes on each side in µs, and where it goes."""

    label: str
    times: Mapping[str, Timing]
    where: Mapping[str, Breakdown]

    @property
    def fastest_dense(self) -> str:
        """The side that is the bar: the fastest of those that multiply the zeros too."""
        return min((side for side in self.times if side != CONVERTED), key=lambda side: self.times[side].best)

    def gain(self, over: str) -> float | None:
        """How many times faster the converted model is, by medians; None if the spread exceeds the difference.

        Of unsteady times by the ends that make the least of it.
        """
        dense, sparse = self.times[over], self.times[CONVERTED]
        if not differ(dense, sparse):
            return None
        return dense.best / sparse.worst if sparse.median < dense.median else dense.worst / sparse.best

    def told(self, over: str) -> str:
        """The gain in words: 1.85x, no difference; of unsteady times ≥1.20x, ≤0.90x, or what their medians hint at."""
        gain, (dense, sparse) = self.gain(over), (self.times[over], self.times[CONVERTED])
        if dense.steady and sparse.steady:
            return "no difference" if gain is None else f"{gain:.2f}x"
        if gain is None:  # a loss is never hidden, a gain must be certain
            hint = dense.median / sparse.median
            return "unsteady" if hint >= 1 else f"unsteady, {hint:.2f}x"
        return f"{'≥' if gain > 1 else '≤'}{gain:.2f}x"

    @property
    def unsteady(self) -> tuple[str, ...]:
        """Sides whose times vary too much to be believed."""
        return tuple(side for side, timing in self.times.items() if not timing.steady)

    def groups(self, side: str) -> dict[str, float]:
        """µs of one pass by repeated layers taken together, and of the rest, summing up to the whole."""
        found: dict[str, float] = {}
        for name, us in self.where[side].layers.items():
            group = NUMBER.sub("*", name) or "(the model)"
            found[group] = found.get(group, 0.0) + us
        return {**found, REST: self.where[side].rest}


@dataclass(frozen=True)
class Comparison:
    """A model's sides at several sizes. resident: bytes of parameters and buffers by side; report: the verification."""

    name: str
    plan: Plan
    sizes: tuple[Size, ...]
    resident: Mapping[str, int]
    report: Report
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether the converted model was verified; without that no gain is told."""
        return self.report.ok

    def gain(self, size: Size, over: str) -> str:
        """The gain as it may be told: 1.85x, no difference, unsteady, or not verified."""
        return size.told(over) if self.ok else "not verified"

    def to_json(self) -> str:
        """Times in µs, resident bytes, gains (None where there is no difference or no proof), verification, plan."""
        return json.dumps(self.as_dict(), indent=2)

    def as_dict(self) -> dict[str, object]:
        """What to_json writes."""
        return {
            "model": self.name,
            "device": asdict(self.plan.device),
            "ok": self.ok,
            "sizes": [_size_dict(self, size) for size in self.sizes],
            "resident_bytes": dict(self.resident),
            "verification": json.loads(self.report.to_json()),
            "plan": json.loads(self.plan.to_json()),
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        from rich.console import Console

        terminal = Console()
        out = StringIO()
        wide = terminal.width if terminal.is_terminal else WIDTH
        Console(file=out, width=wide, color_system=None).print(self)
        return "\n".join(line.rstrip() for line in out.getvalue().rstrip().splitlines())

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.text import Text

        if nothing := nothing_to_gain(self.plan):
            yield Text(nothing, style="bold")
        yield latencies(self)
        yield from _where(self)
        yield Text(memory_line(self))
        yield Text(verified_line(self), style="" if self.ok else "bold red")
        yield from (Text(f"note: {note}", style="yellow") for note in (*self.notes, *self.report.notes))


def latencies(comparison: Comparison) -> Table:
    """One row for each size: what each side takes, and the gains."""
    table = _table("ms of one pass: medians, ± half of p20 to p80")
    sides = list(comparison.sizes[0].times)
    for title in ("size", *(LABELS[side] for side in sides)):
        table.add_column(title, justify="right", overflow="fold")
    for title in ("over fastest dense", "over torch"):
        table.add_column(title, justify="right", min_width=len("difference"))
    for size in comparison.sizes:
        cells = (milliseconds(size.times[side]) for side in sides)
        gains = (comparison.gain(size, over) for over in (size.fastest_dense, STOCK))
        table.add_row(size.label, *cells, *gains)
    return table


def _where(comparison: Comparison) -> Iterator[RenderableType]:
    """Groups of layers down, sides across, for the largest size alone: the others are in the JSON and on the page."""
    size = max(comparison.sizes, key=lambda size: size.times[STOCK].median)
    sides = list(size.where)
    groups = {side: size.groups(side) for side in sides}
    table = _table(f"where the time goes at {size.label}, ms (timed in place, in passes of their own)")
    table.add_column("layers", overflow="fold")
    for title in (*(LABELS[side] for side in sides), "share"):
        table.add_column(title, justify="right")
    for group, us in sorted(groups[STOCK].items(), key=lambda pair: (pair[0] == REST, -pair[1])):
        cells = (f"{groups[side].get(group, 0.0) / 1e3:.2f}" for side in sides)
        table.add_row(group, *cells, f"{us / size.where[STOCK].whole:.0%}" if size.where[STOCK].whole else "")
    yield table


def memory_line(comparison: Comparison) -> str:
    """Resident bytes of the sides, in one sentence."""
    held = comparison.resident
    share = held[CONVERTED] / held[STOCK] if held[STOCK] else 1.0
    stock, dense, converted = (readable_bytes(held[side]) for side in (STOCK, DENSE, CONVERTED))
    return f"resident: {LABELS[STOCK]} {stock}, {LABELS[DENSE]} {dense}, converted {converted} ({share:.0%})"


def verified_line(comparison: Comparison) -> str:
    """What the verification found, in one sentence."""
    report = comparison.report
    if not report.ok:
        return f"NOT VERIFIED, so no gain is told: {'; '.join(report.failures)}"
    if not report.layers:
        return f"verified: no layer was converted; the outputs differ by {report.error:.2g}, allowed {report.limit:.2g}"
    calls = ", ".join(f"{count} of {name}" for name, count in report.calls.items()) or "none"
    return (
        f"verified: {len(report.layers)} layers hold the pruned weights bit for bit; op calls: {calls}; largest error "
        f"of the outputs {report.error:.2g}, allowed {report.limit:.2g}"
    )


def milliseconds(timing: Timing) -> str:
    """12.3 ±3%: the median with as many digits as tell something, and half the way from p20 to p80, or unsteady."""
    digits = sum(timing.median < bar * 1e3 for bar in (1, 10, 100))
    return f"{timing.median / 1e3:.{digits}f} {f'±{timing.spread / 2:.0%}' if timing.steady else 'unsteady'}"


def _table(title: str) -> Table:
    from rich import box
    from rich.table import Table

    return Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)


def _size_dict(comparison: Comparison, size: Size) -> dict[str, object]:
    told = comparison.ok
    return {
        "size": size.label,
        "times_us": {side: _timing_dict(timing) for side, timing in size.times.items()},
        "fastest_dense": size.fastest_dense,
        "over_fastest_dense": size.gain(size.fastest_dense) if told else None,
        "over_stock": size.gain(STOCK) if told else None,
        "layers_us": {side: {**each.layers, REST: each.rest} for side, each in size.where.items()},
    }


def _timing_dict(t: Timing) -> dict[str, object]:
    return {"median": t.median, "p20": t.low, "p80": t.high, "fastest": t.fastest, "steady": t.steady}
