"""The page: comparisons as one HTML file that needs no network and no script."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from html import escape
from itertools import count
from pathlib import Path

from ajour.comparison.charts import MARK, bars, check_matplotlib, stacks
from ajour.comparison.document import document, table, tile_list
from ajour.comparison.layer_table import layer_table
from ajour.comparison.report import REST, Comparison, Size, memory_line, milliseconds, verified_line
from ajour.comparison.sides import CONVERTED, LABELS, STOCK
from ajour.planning.report import nothing_to_gain
from ajour.planning.timing import Timing

PARTS = ("a", "b", "c", "d")  # colours of the groups that take most of the time
OTHERS = "other linear layers"
MEASURING = (
    "Sides take turns round by round; bars are medians, the thin line goes from the 20th to the 80th percentile. "
    "± is half of that way. "
    "“No difference” means that the spread exceeds the difference. A time is unsteady where its 80th percentile is "
    "over 1.5 times its fastest round; a gain is then what is certain, the fastest dense round over the 80th "
    "percentile of the converted model, and told with ≥. No gain is told without a verification in the same run. Where "
    "the time goes is measured in passes of their own, with hooks on the layers."
)


def write_page(path: Path, title: str, intro: str, comparisons: Sequence[Comparison]) -> None:
    """Writes the page; raises MachineError without matplotlib."""
    check_matplotlib()
    path.write_text(page(title, intro, comparisons), encoding="utf-8")


def page(title: str, intro: str, comparisons: Sequence[Comparison]) -> str:
    """The HTML text; every string that comes from a model is escaped."""
    device = str(comparisons[0].plan.device) if comparisons else ""
    parts = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="soft">Measured on {escape(device)}</p>',
        f"<p>{escape(intro)}</p>",
    ]
    for comparison in comparisons:
        parts += _section(comparison)
    parts.append(f'<h2>How this was measured</h2><p class="soft">{MEASURING}</p>')
    number = count()
    body = re.sub(
        r"<svg\b.*?</svg>",
        lambda svg: svg[0].replace(MARK, f"{MARK}{next(number)}-"),
        "\n".join(parts),
        flags=re.DOTALL,
    )
    return document(title, body)


def _section(comparison: Comparison) -> Iterator[str]:
    yield f"<h2>{escape(comparison.name or 'The model')}</h2>"
    if nothing := nothing_to_gain(comparison.plan):
        yield f"<p>{escape(nothing)}</p>"
    yield _tiles(comparison)
    first, _, more = verified_line(comparison).partition(": ")
    yield f'<p><span class="{"good" if comparison.ok else "bad"}">{escape(first)}</span>: {escape(more)}</p>'
    yield from (f'<p class="soft">{escape(note)}</p>' for note in (*comparison.notes, *comparison.report.notes))
    yield "<h3>Latency of one pass</h3>"
    yield _charts((f"{size.label}", _latency(size)) for size in comparison.sizes)
    yield _latency_table(comparison)
    yield "<h3>Where the time goes</h3>"
    groups = _heaviest(comparison)
    drawn = {size.label: _where(size, groups) for size in comparison.sizes}
    seen = {part for rows in drawn.values() for _, parts in rows for part, ms in parts.items() if ms > 0}
    groups = {part: colour for part, colour in groups.items() if part in seen}
    yield _legend(groups)
    yield _charts((label, stacks(rows, groups, "ms")) for label, rows in drawn.items())
    choices = comparison.plan.choices
    yield f"<details><summary>All {len(choices)} layers and their choices</summary>{layer_table(choices)}</details>"


def _tiles(comparison: Comparison) -> str:
    """The gains over the fastest dense at each size, and memory."""
    tiles = [
        (comparison.gain(size, size.fastest_dense), f"over the fastest dense at {size.label}")
        for size in comparison.sizes
    ]
    held = comparison.resident
    tiles.append((f"{held[CONVERTED] / held[STOCK]:.0%}" if held[STOCK] else "-", "of the dense model's memory"))
    return f'{tile_list(tiles)}<p class="soft">{escape(memory_line(comparison))}</p>'


def _charts(drawn: Iterator[tuple[str, str]]) -> str:
    figures = (f"<figure><figcaption>{escape(title)}</figcaption>{svg}</figure>" for title, svg in drawn)
    return f'<div class="charts">{"".join(figures)}</div>'


def _latency(size: Size) -> str:
    rows = [(LABELS[side], side, Timing(t.median / 1e3, t.low / 1e3, t.high / 1e3)) for side, t in size.times.items()]
    return bars(rows, "ms")


def _latency_table(comparison: Comparison) -> str:
    sides = list(comparison.sizes[0].times)
    head = ["size", *(f"{LABELS[side]}, ms" for side in sides), "over fastest dense", "over torch"]
    rows = [
        [size.label, *(milliseconds(size.times[side]) for side in sides), comparison.gain(size, size.fastest_dense),
         comparison.gain(size, STOCK)]
        for size in comparison.sizes
    ]  # fmt: skip
    return table(head, [[escape(cell) for cell in row] for row in rows])


def _heaviest(comparison: Comparison) -> dict[str, str]:
    """The colour of each part of the time: groups of layers, heaviest first, other layers, and the rest."""
    total: dict[str, float] = {}
    for size in comparison.sizes:
        for group, us in size.groups(STOCK).items():
            total[group] = total.get(group, 0.0) + us / max(size.where[STOCK].whole, 1e-9)
    heavy = sorted((group for group in total if group != REST), key=lambda group: -total[group])[: len(PARTS)]
    others = {OTHERS: "e"} if len(total) - 1 > len(heavy) else {}
    return {**dict(zip(heavy, PARTS, strict=False)), **others, REST: "rest"}


def _where(size: Size, groups: dict[str, str]) -> list[tuple[str, dict[str, float]]]:
    """For each side its parts of the time in ms, by group."""
    rows = []
    for side in size.where:
        found = {group: us / 1e3 for group, us in size.groups(side).items()}
        shown = {group: found.get(group, 0.0) for group in groups}
        shown[OTHERS] = sum(us for group, us in found.items() if group not in groups)
        rows.append((LABELS[side], shown))
    return rows


def _legend(groups: dict[str, str]) -> str:
    items = "".join(
        f'<li><i style="background:var(--{colour})"></i>{escape(name)}</li>' for name, colour in groups.items()
    )
    return f'<ul class="legend">{items}</ul>'
