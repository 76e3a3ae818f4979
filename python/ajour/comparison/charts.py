"""Charts as SVG for a page: text stays text, and colours are the page's own, so that light and dark both read well."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping, Sequence
from io import StringIO
from typing import TYPE_CHECKING, Any

from ajour.diagnosis import import_failure
from ajour.planning.timing import Timing
from ajour.terms.errors import MachineError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARK = "chart-"  # begins every id; a page makes it another one for each chart
INCHES = 3.9  # of width, at 100 points each: as wide as a phone shows without shrinking the letters
ROW, AROUND = 0.42, 0.45  # inches of height: for each bar, and for the axis
# a colour that no chart has by itself -> the page's variable that replaces it
INK, LINE = "#010203", "#040506"
VARIABLES = {INK: "var(--ink)", LINE: "var(--line)"}
SERIES = ("stock", "compiled", "dense", "converted", "a", "b", "c", "d", "e", "rest")
COLOURS = {name: f"#0a0b{place:02x}" for place, name in enumerate(SERIES, 16)}
VARIABLES |= {colour: f"var(--{name})" for name, colour in COLOURS.items()}


def check_matplotlib() -> None:
    """Raises MachineError where charts can't be drawn; said before anything is measured."""
    if importlib.util.find_spec("matplotlib") is None:
        raise MachineError("a page with charts needs matplotlib; install it with: pip install matplotlib")
    if failure := import_failure("matplotlib.figure"):
        raise MachineError(
            f"a page with charts needs matplotlib, and the one here is broken ({failure}); "
            "repair it with: pip install --force-reinstall matplotlib"
        )


def bars(rows: Sequence[tuple[str, str, Timing]], unit: str) -> str:
    """One bar for each (label, series, timing in `unit`), with its value and a line from p20 to p80."""
    figure, axes = _axes(len(rows))
    longest = max(timing.high for *_, timing in rows) or 1.0
    for place, (_, series, timing) in enumerate(rows):
        axes.barh(place, timing.median, height=0.62, color=COLOURS[series])
        if timing.high > timing.low:
            axes.plot([timing.low, timing.high], [place, place], color=INK, linewidth=1.4, solid_capstyle="butt")
        axes.text(
            max(timing.median, timing.high) + longest * 0.03, place, _short(timing.median), va="center", color=INK
        )
    axes.set_xlim(0, longest * 1.24)
    return _finish(figure, axes, [label for label, *_ in rows], unit)


def stacks(rows: Sequence[tuple[str, Mapping[str, float]]], series: Mapping[str, str], unit: str) -> str:
    """One bar for each (label, parts in `unit`); series: the colour's name of each part, in the order of stacking."""
    figure, axes = _axes(len(rows))
    for place, (_, parts) in enumerate(rows):
        left = 0.0
        for part, colour in series.items():
            width = parts.get(part, 0.0)
            axes.barh(place, width, left=left, height=0.62, color=COLOURS[colour])
            left += width
    axes.set_xlim(0, max(sum(parts.values()) for _, parts in rows) * 1.04 or 1.0)
    return _finish(figure, axes, [label for label, _ in rows], unit)


def _axes(rows: int) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(INCHES, ROW * rows + AROUND))
    return figure, figure.add_axes((0.0, 0.0, 1.0, 1.0))


def _finish(figure: Figure, axes: Axes, labels: Sequence[str], unit: str) -> str:
    """Labels, a light grid, and the SVG's text with the page's colours."""
    from matplotlib import rc_context
    from matplotlib.ticker import MaxNLocator

    height = figure.get_figheight()
    left = 0.02 + 0.068 * max(len(label) for label in labels) / INCHES
    axes.set_position((left, AROUND / height, 0.955 - left, 1 - AROUND / height - 0.01))
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.set_xlabel(unit, color=INK)
    axes.tick_params(colors=INK, length=0, labelsize=9.5)
    axes.grid(axis="x", color=LINE, linewidth=0.8)
    axes.set_axisbelow(True)
    for spine in axes.spines.values():
        spine.set_visible(False)
    figure.patch.set_visible(False)
    axes.patch.set_visible(False)
    out = StringIO()
    style: Any = {"svg.fonttype": "none", "svg.hashsalt": "ajour", "font.size": 9.5}
    with rc_context(style):
        figure.savefig(out, format="svg", metadata={"Date": None})
    return _inline(out.getvalue())


def _inline(svg: str) -> str:
    """The drawing alone: no prolog, no metadata, no addresses, and only those ids that are referred to."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\s+xmlns(:\w+)?="[^"]*"', "", svg).replace("xlink:href", "href")
    used = set(re.findall(r'(?:url\(|href=")#([^")]+)', svg))
    svg = re.sub(r'\s+id="([^"]+)"', lambda found: f' id="{MARK}{found[1]}"' if found[1] in used else "", svg)
    svg = re.sub(r'(url\(|href=")#', rf"\1#{MARK}", svg)
    svg = re.sub(r'(<svg\b[^>]*?)\s+width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg\b[^>]*?)\s+height="[^"]*"', r"\1", svg, count=1)
    for colour, variable in VARIABLES.items():
        svg = svg.replace(colour, variable)
    return re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", svg)


def _short(value: float) -> str:
    return f"{value:.3g}" if value < 100 else f"{value:,.0f}"
