"""The limits as a page that people like to read, and as JSON."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from io import StringIO
from typing import TYPE_CHECKING

from ajour.roofline.ways import HEADLINE

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
    from rich.table import Table
    from rich.text import Text

WIDTH = 120
HELPS = 1.05  # a gain below is none
COLUMNS = ("rows", "dense", "decided by", *(name.replace(" ", "\n", 1) for name in HEADLINE))
NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")
RULES = {
    "cuda": (
        "2:4 doubles the rate of multiplication on sparse tensor cores alone (16-bit weights, sm_80 and later), and "
        "that matters only at many rows. Unstructured zeros save bytes, never multiplications: tensor cores take whole "
        "tiles. Blocks save both; on Hopper, blocks of 32 can be fed at two thirds of the dense rate."
    ),
    "cpu": (
        "A CPU multiplies only what is kept, at best at the dense rate: every pattern can save bytes and "
        "multiplications. Scattered zeros rarely come close to it, blocks do."
    ),
}
ALWAYS = (
    "Percentages count zeros. int4 holds weights alone (4.125 bits each, with group scales) and multiplies at the "
    "dense rate; fp8 needs fp8 products. Weights are taken to come from memory, not from a cache.\n"
    "Limits, not promises: no kernel can be faster, and real ones are slower. Only linear layers are counted; what "
    "else the model does runs as before, so the whole model gains less."
)


@dataclass(frozen=True)
class LayerLimits:
    """One layer at one number of rows: µs of dense at best, what decides it ("bytes" or "arithmetic"), gains by way.

    A gain is dense_us over the way's own limit, None where the device can't run it.
    """

    layer: str
    shape: tuple[int, ...]
    dtype: str
    rows: int
    dense_us: float
    bound: str
    gains: Mapping[str, float | None]


@dataclass(frozen=True)
class SizeLimits:
    """All linear layers at one size of the example; rows: what most of them see."""

    rows: int
    dense_us: float
    gains: Mapping[str, float | None]
    layers: tuple[LayerLimits, ...]

    def sentence(self) -> str:
        """What is worth how much at most, in one sentence."""
        known = [(name, gain) for name in HEADLINE if (gain := self.gains.get(name)) is not None]
        worth = [f"{name} {gain:.2f}x" for name, gain in known if gain >= HELPS]
        idle = [name for name, gain in known if gain < HELPS]
        at = f"At {count(self.rows)}"
        if not worth:
            return f"{at} nothing helps: the best of {', '.join(idle)} brings under {HELPS:.2f}x."
        if len(worth) == 1 and idle:
            return f"{at} only {worth[0]} helps, at most; no gain from {', '.join(idle)}."
        return f"{at}, at most: {', '.join(worth)}." + (f" No gain from {', '.join(idle)}." if idle else "")


@dataclass(frozen=True)
class LimitsReport:
    """What each way could gain on a device; bandwidth: bytes in a µs, rates: flops in a µs by dtype.

    kind: "cpu" or "cuda". ways: their names, in order. skipped: layers that can't be converted, with the reason.
    """

    device: str
    kind: str
    source: str
    bandwidth: float
    rates: Mapping[str, float]
    ways: tuple[str, ...]
    sizes: tuple[SizeLimits, ...]
    skipped: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def to_json(self) -> str:
        """All fields, and each size's sentence."""
        sizes = [{**asdict(size), "sentence": size.sentence()} for size in self.sizes]
        return json.dumps({**asdict(self), "sizes": sizes}, indent=2)

    def __str__(self) -> str:
        from rich.console import Console

        terminal = Console()
        out = StringIO()
        wide = terminal.width if terminal.is_terminal else WIDTH
        Console(file=out, width=wide, color_system=None).print(self)
        return "\n".join(line.rstrip() for line in out.getvalue().rstrip().splitlines())

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.text import Text

        rates = ", ".join(f"{_flops(rate)} in {dtype}" for dtype, rate in self.rates.items())
        yield Text(f"Limits on {self.device}", style="bold")
        yield Text(f"{self.bandwidth / 1e3:,.0f} GB/s; {rates} ({self.source})", style="dim")
        yield Text("")
        yield from (Text(size.sentence()) for size in self.sizes)
        yield _totals(self)
        yield from _layers(self)
        if self.skipped:
            more = f" (and {len(self.skipped) - 1} more)" if len(self.skipped) > 1 else ""
            yield Text(f"not counted: {self.skipped[0]}{more}", style="yellow")
        yield from (Text(note, style="yellow") for note in self.notes)
        yield Text(f"\n{RULES[self.kind]} {ALWAYS}", style="dim")


def _totals(report: LimitsReport) -> Table:
    """Ways down, numbers of rows across."""
    table = _table("all linear layers", *(count(size.rows) for size in report.sizes))
    table.add_row("dense, at best", *(us(size.dense_us) for size in report.sizes))
    for way in report.ways:
        table.add_row(way, *(times(size.gains.get(way)) for size in report.sizes))
    return table


def _layers(report: LimitsReport) -> Iterator[RenderableType]:
    """Layers of one shape that see the same rows together: the headline ways, and what decides."""
    from rich.text import Text

    yield _grid([Text(title, style="dim") for title in COLUMNS])
    seen: dict[str, list[LayerLimits]] = {}
    for size in report.sizes:
        for layer in size.layers:
            seen.setdefault(layer.layer, []).append(layer)
    clusters: dict[tuple[object, ...], list[str]] = {}
    for name, each in seen.items():
        clusters.setdefault((each[0].shape, each[0].dtype, *(layer.rows for layer in each)), []).append(name)
    for names in clusters.values():
        repeated = Counter(NUMBER.sub("*", name) or "(the model)" for name in names)
        for name, times_seen in repeated.items():
            yield Text(f"{name} ({times_seen}x)" if times_seen > 1 else name, style="bold")
        first = seen[names[0]][0]
        yield Text(f"  {'x'.join(map(str, first.shape))} {first.dtype}", style="dim")
        for layer in seen[names[0]]:
            gains = (times(layer.gains.get(way)) for way in HEADLINE)
            yield _grid([Text(cell) for cell in (str(layer.rows), us(layer.dense_us), layer.bound, *gains)])


def _grid(cells: Sequence[Text]) -> Table:
    from rich.table import Table

    grid = Table.grid(padding=(0, 1, 0, 0))
    for title in COLUMNS:
        grid.add_column(min_width=max(8, *(len(line) for line in title.split("\n"))), justify="right")
    grid.add_row(*cells)
    return grid


def _table(*columns: str) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    for place, name in enumerate(columns):
        table.add_column(name, justify="right" if place else "left", overflow="fold")
    return table


def count(rows: int) -> str:
    """1 row, 2 rows."""
    return f"{rows} row" if rows == 1 else f"{rows} rows"


def _flops(rate: float) -> str:
    return f"{rate / 1e6:.3g} TFLOP/s" if rate >= 1e6 else f"{rate / 1e3:.3g} GFLOP/s"


def times(gain: float | None) -> str:
    """1.78x; a dash where there is none."""
    return "-" if gain is None else f"{gain:.2f}x"


def us(value: float) -> str:
    """µs, with as many digits as tell something."""
    return f"{value:,.0f} µs" if value >= 100 else f"{value:.3g} µs"
