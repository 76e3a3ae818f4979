"""Reports as text: a table as wide as its longest row, or cards on a terminal that is too narrow for it."""

from __future__ import annotations

from collections.abc import Iterator
from io import StringIO
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.table import Table

WIDTH = 1000  # where no terminal says otherwise: a row is easier to read in one line, however long


def printed(report: RenderableType) -> str:
    """What print(report) shows, without colours."""
    from rich.console import Console

    terminal, out = Console(), StringIO()
    if terminal.is_terminal:
        Console(file=out, width=terminal.width, color_system=None).print(report)
    else:
        Console(file=out, width=WIDTH, color_system=None).print(report, soft_wrap=True)
    return "\n".join(line.rstrip() for line in out.getvalue().rstrip().splitlines())


def fitting(table: Table, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
    """The table; or each of its rows as a card, its first cell above the others, which have their names before them."""
    from rich.padding import Padding
    from rich.text import Text

    if console.measure(table, options=options.update(width=WIDTH)).maximum <= options.max_width:
        yield table
        return
    names = [str(column.header) for column in table.columns]
    for cells in zip(*(column.cells for column in table.columns), strict=True):
        yield Text(str(cells[0]), overflow="fold")
        told = (f"{name} {cell}" for name, cell in zip(names[1:], cells[1:], strict=True) if str(cell))
        yield Padding(Text(" · ".join(told), overflow="fold"), (0, 0, 0, 2))
