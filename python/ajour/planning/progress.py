"""A bar on stderr that names what is being measured; imported only while planning, as rich's is slow to load."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn


@contextmanager
def bar(shown: bool, total: int) -> Iterator[tuple[Callable[[str], None], Callable[[], None]]]:
    """(tell, advance) of a bar of `total` steps, shown only on a terminal and gone at the end."""
    console = Console(stderr=True)
    columns = (BarColumn(20), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    disabled = not (shown and console.is_terminal)
    with Progress(*columns, console=console, transient=True, disable=disabled) as progress:
        task = progress.add_task("looking for layers", total=total)
        yield (
            lambda text: progress.update(task, description=f"measuring {text}"),
            lambda: progress.update(task, advance=1),
        )
