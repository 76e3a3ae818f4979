"""A bar on stderr that counts the tensors that were read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn


@contextmanager
def bar(shown: bool, name: str, total: int) -> Iterator[Callable[[], None]]:
    """advance() of a bar of `total` tensors, shown only on a terminal and gone at the end."""
    console = Console(stderr=True)
    columns = (BarColumn(20), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    disabled = not (shown and console.is_terminal)
    with Progress(*columns, console=console, transient=True, disable=disabled) as progress:
        task = progress.add_task(f"reading {name}", total=total)
        yield lambda: progress.update(task, advance=1)
