"""A plan as a page that people like to read: layers, their choices and gains, totals, and notes."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from io import StringIO

from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from ajour.planning.plan import DENSE_KERNELS, Choice, Plan
from ajour.planning.timing import remedy

WIDTH = 120  # of print(plan) where no terminal says otherwise
NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")  # a part of a name that is a number: encoder.layer.0.query
MOST_SPANS = 4  # ranges of rows that one sentence names
COLUMNS = ("rows", "choice", "today", "dense", "planned", "gain", "over today")
WIDTHS = (6, 16, 10, 10, 10, 7, 10)
HEAVY, LIGHT = "bold", "dim"


@dataclass(frozen=True)
class Cluster:
    """Layers of one shape, pattern and choice, measured at the same numbers of rows; shown together."""

    choices: tuple[Choice, ...]

    @property
    def names(self) -> list[str]:
        """Repeated layers as one: encoder.layer.*.query (6x)."""
        groups: dict[str, list[str]] = {}
        for choice in self.choices:
            groups.setdefault(NUMBER.sub("*", choice.layer), []).append(choice.layer)
        return [f"{name} ({len(group)}x)" if len(group) > 1 else group[0] for name, group in groups.items()]

    @property
    def facts(self) -> str:
        """Shape, dtype, pattern, what is kept, and bytes."""
        first, count = self.choices[0], len(self.choices)
        facts = [f"{'x'.join(map(str, first.shape))} {first.dtype}"]
        if first.pattern is not None:
            densities = [choice.density or 0.0 for choice in self.choices]
            facts += [str(first.pattern), f"{_span([_percent(min(densities)), _percent(max(densities))])} kept"]
        if first.dense_bytes:
            before, after = (sum(getattr(c, name) for c in self.choices) for name in ("dense_bytes", "sparse_bytes"))
            facts.append(
                readable_bytes(before) if before == after else f"{readable_bytes(before)} → {readable_bytes(after)}"
            )
        return (f"{count} layers: " if count > 1 else "") + " · ".join(facts)


def clusters(choices: Sequence[Choice]) -> list[Cluster]:
    """Layers that read alike together, in the order of their first ones."""
    groups: dict[tuple[object, ...], list[Choice]] = {}
    for choice in choices:
        rows = tuple(m.rows for m in choice.measurements)
        why = "" if choice.measurements else choice.reason
        same = (choice.shape, choice.dtype, choice.pattern, choice.op, choice.stored, choice.kernels, rows, why)
        groups.setdefault(same, []).append(choice)
    return [Cluster(tuple(group)) for group in groups.values()]


def text(plan: Plan, width: int | None = None) -> str:
    """The page as plain text; `width` defaults to the terminal's, or to WIDTH."""
    terminal = Console()
    wide = width or (terminal.width if terminal.is_terminal else WIDTH)
    out = StringIO()
    Console(file=out, width=wide, color_system=None, legacy_windows=False).print(*render(plan), sep="\n")
    return "\n".join(line.rstrip() for line in out.getvalue().rstrip().splitlines())


def render(plan: Plan) -> Iterator[RenderableType]:
    """The page, part by part."""
    yield Text(f"Plan for {plan.device}", style=HEAVY)
    if nothing := nothing_to_gain(plan):
        yield Text(nothing, style=HEAVY)
    if any(choice.measurements for choice in plan.choices):
        what = "y, dx and dw together" if plan.trainable else "one call"
        yield Text(f"µs of {what}, medians; gain is over the best dense on this device", style=LIGHT)
        yield _grid([[Text(name, style=LIGHT) for name in COLUMNS]])
    for cluster in clusters(plan.choices):
        for name in cluster.names:
            yield Text(name, style=HEAVY)
        yield Padding(Text(cluster.facts, style=LIGHT), (0, 0, 0, 2))
        if cluster.choices[0].measurements:
            yield _grid([_cells(cluster.choices, place) for place in range(len(cluster.choices[0].measurements))])
        if cluster.choices[0].op in ("", "dense_linear"):
            reasons = dict.fromkeys(choice.reason for choice in cluster.choices)
            more = f" (and {len(reasons) - 1} reasons like it)" if len(reasons) > 1 else ""
            kept = "not sparse" if cluster.choices[0].measurements else "kept"
            yield Padding(Text(f"{kept}: {next(iter(reasons))}{more}", style="yellow"), (0, 0, 0, 2))
    yield from _totals(plan) if plan.choices else ()
    yield from _notes(plan)


def nothing_to_gain(plan: Plan) -> str | None:
    """Why no sparse layer can come of this plan, where that is plain before any time is looked at."""
    usable = [choice for choice in plan.choices if choice.density is not None]
    if not usable:
        others = f" that it could take ({_counted(len(plan.choices), 'weight')} of other kinds)" if plan.choices else ""
        return f"Nothing to gain here: ajour converts linear layers, and this model has none{others}."
    if all(choice.density == 1 for choice in usable):
        many = _counted(len(usable), "linear layer")
        return (
            f"Nothing to gain yet: {many} without a single zero. Prune the model first (`ajour limits` says what each "
            "pattern could bring)."
        )
    return None


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _grid(rows: Iterable[Sequence[Text]]) -> Table:
    grid = Table.grid(padding=(0, 1, 0, 0))
    for name, width in zip(COLUMNS, WIDTHS, strict=True):
        grid.add_column(min_width=width, justify="left" if name == "choice" else "right", overflow="fold")
    for row in rows:
        grid.add_row(*row)
    return grid


def _cells(choices: Sequence[Choice], place: int) -> list[Text]:
    """The line of one number of rows, in the mean over the layers."""
    first, m = choices[0], choices[0].measurements[place]
    entry = first.at(m.rows)
    sparse = entry is not None and entry.kernel not in DENSE_KERNELS
    if entry is None:
        what = Text("as it is", style=LIGHT)
    elif entry.kernel in DENSE_KERNELS:
        what = Text(f"dense {entry.kernel}")
    else:
        what = Text(f"{entry.kernel} {entry.config}".rstrip(), style="green")
        if first.stored != first.pattern:
            what.append(f" as {first.stored}")
        elif first.op == "split_linear":
            what.append(" as 2:4 + rest")
    if not all(c.measurements[place].steady for c in choices):
        what = Text.assemble(what, (" unsteady", "yellow"))
    return [Text(str(m.rows)), what, *_gains([(c, place) for c in choices], len(choices), sparse)]


def _gains(measured: Sequence[tuple[Choice, int]], share: int, show: bool) -> list[Text]:
    """today, dense, planned, and the gains over dense and today of some layers at one place of their measurements."""
    today, dense, planned = sums = _sums(measured)
    least = _at_least(measured)
    over = Text(least + _times(dense, planned) if show else "", style="bold green" if planned < dense else "")
    return [*(Text(_us(value / share)) for value in sums), over, Text(least + _times(today, planned))]


def _sums(measured: Sequence[tuple[Choice, int]]) -> tuple[float, float, float]:
    pairs = [(c, c.measurements[place]) for c, place in measured]
    return sum(m.today_us for _, m in pairs), sum(m.dense_us for _, m in pairs), sum(c.chosen_us(m) for c, m in pairs)


def _at_least(measured: Sequence[tuple[Choice, int]]) -> str:
    """The sign before a gain that rests on ends of unsteady times."""
    return "" if all(c.measurements[place].steady for c, place in measured) else "≥"


def _totals(plan: Plan) -> Iterator[RenderableType]:
    """Sums over layers, for each number of rows by its place where layers saw different ones."""
    sparse = sum(c.op not in ("", "dense_linear") for c in plan.choices)
    better = sum(c.op == "dense_linear" for c in plan.choices)
    line = Text(f"all {_counted(len(plan.choices), 'layer')}: {_become(sparse)} sparse", style=HEAVY)
    line.append(f", {better} stay{'s' if better == 1 else ''} dense on a better kernel" if better else "")
    before, after = (sum(getattr(c, name) for c in plan.choices) for name in ("dense_bytes", "sparse_bytes"))
    line.append(f"; weights {readable_bytes(before)} → {readable_bytes(after)}" if before else "")
    yield line
    rows = [[Text(span), Text(_counted(len(here), "layer")), *_gains(here, 1, True)] for span, here in _by_place(plan)]
    if rows:
        yield _grid(rows)


def gains(plan: Plan) -> list[tuple[str, str]]:
    """(numbers of rows, gain of all measured layers together over the best dense), as they are shown."""
    found = []
    for span, here in _by_place(plan):
        _, dense, planned = _sums(here)
        found.append((span, _at_least(here) + _times(dense, planned)))
    return found


def _by_place(plan: Plan) -> Iterator[tuple[str, list[tuple[Choice, int]]]]:
    """(numbers of rows, the layers measured there) by the place of a measurement, as layers may see different rows."""
    measured = [c for c in plan.choices if c.measurements]
    for place in range(max((len(c.measurements) for c in measured), default=0)):
        here = [(c, place) for c in measured if len(c.measurements) > place]
        yield _span(sorted({c.measurements[place].rows for c, _ in here})), here


def _notes(plan: Plan) -> Iterator[Text]:
    margin = "taken wherever a pattern fits" if plan.margin is None else f"taken where it gains {plan.margin:.0%}"
    lines = [f"Sparse is {margin}; resident bytes are capped at {plan.memory:g}x of dense."] * bool(plan.choices)
    if any(c.op == "dense_linear" for c in plan.choices):
        lines.append("What a better dense kernel brings is in `over today` only, never in `gain`.")
    if twins := sum(c.measured_on is not None for c in plan.choices):
        lines.append(f"{twins} layers carry the times of a twin of the same shape, pattern and density.")
    if gaps := sorted({gap for c in plan.choices for gap in _unmeasured(c)}):
        spans = ", ".join(f"{low}-{high}" for low, high in gaps)
        lines.append(f"Not measured: {spans} rows; there the choice for the larger number holds.")
    if outside := beyond(plan):
        lines.append(outside)
    if plan.untried:
        left = _counted(len(set(map(_without_layer, plan.untried))), "other way")
        lines.append(f"Not timed: {left} to run these layers, most of them for other devices (--json says why).")
    yield Text("\n".join(lines), style=LIGHT)
    yield from (Text(each, style="yellow") for each in warnings(plan))


def warnings(plan: Plan) -> Iterator[str]:
    """What casts doubt on the times, and the plan's notes."""
    measured = [m for c in plan.choices for m in c.measurements]
    if unsteady := sum(not m.steady for m in measured):
        yield (
            f"{unsteady} of {_counted(len(measured), 'measurement')} unsteady, spread up to "
            f"{max(m.spread for m in measured):.0%}: there dense counts by its fastest turn and sparse by its p80, so "
            f"a gain is what is certain, and more may be there. To know, {remedy(plan.device.threads)}."
        )
    yield from _shortened(plan.notes)


def _become(sparse: int) -> str:
    return f"{sparse} become{'s' if sparse == 1 else ''}" if sparse else "none becomes"


def _without_layer(note: str) -> str:
    return note.partition(": ")[2] or note


def _unmeasured(choice: Choice) -> Iterator[tuple[int, int]]:
    """Ranges between two measured numbers of rows whose choices differ."""
    for low, high in zip(choice.measurements, choice.measurements[1:], strict=False):
        if choice.at(low.rows) != choice.at(high.rows) and high.rows - low.rows > 1:
            yield low.rows + 1, high.rows - 1


def beyond(plan: Plan) -> str | None:
    """That a plan knows nothing of fewer and of more rows than were measured, where it chose something for them."""
    chosen = [c.measurements for c in plan.choices if c.op and c.measurements]
    spans = Counter((measured[0].rows, measured[-1].rows) for measured in chosen)
    if not spans:
        return None
    several = len(spans) > 1
    where = [_outside(*span) + (f" ({_counted(count, 'layer')})" if several else "") for span, count in spans.items()]
    return (
        f"Not measured: rows {', '.join(where[:MOST_SPANS])}{', ...' if len(where) > MOST_SPANS else ''}; there the "
        "choice for the nearest measured number holds, and may be slower than the layer as it is. Plan with the "
        "numbers of rows that will run: several examples, or rows=[...]."
    )


def _outside(least: int, most: int) -> str:
    return f"below {least} and above {most}" if least > 1 else f"above {most}"


def _shortened(notes: Iterable[str]) -> Iterator[str]:
    """Notes that differ only in the layer's name once, with their number."""
    groups: dict[str, list[str]] = {}
    for note in notes:
        layer, found, rest = note.partition(": ")
        groups.setdefault(rest if found else note, []).append(layer if found else "")
    for note, layers in groups.items():
        more = f" (and {len(layers) - 1} more layers)" if len(layers) > 1 else ""
        yield f"{layers[0]}{more}: {note}" if layers[0] else note


def _span(values: Sequence[object]) -> str:
    return str(values[0]) if values[0] == values[-1] else f"{values[0]}-{values[-1]}"


def _percent(density: float) -> str:
    return f"{density:.0%}" if density >= 0.095 or density == 0 else f"{density:.1%}"


def _times(a: float, b: float) -> str:
    return f"{a / b:.2f}x" if b else "-"


def _us(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def readable_bytes(value: float) -> str:
    """1.42 MB."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.0f} B"
