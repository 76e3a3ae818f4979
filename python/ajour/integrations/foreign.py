"""Other people's code: what a factory or a model's own forward raises, as one sentence with its place."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from ajour.terms.errors import AjourError

LONGEST = 300  # characters of somebody else's message


class Foreign:
    """Around a call of other people's code, which may raise anything: it goes on as what `told` makes of the sentence.

    Nothing is swallowed. ajour's own errors, a missing package and an interrupt pass through as they are.
    """

    def __init__(self, told: Callable[[str], Exception]) -> None:
        self.told = told

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if error is None or isinstance(error, (AjourError, ModuleNotFoundError, KeyboardInterrupt, GeneratorExit)):
            return
        raise self.told(one_line(error) + _place(error)) from error


def one_line(error: BaseException) -> str:
    """The class of an error and the first line of its message."""
    first, *_ = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {first[:LONGEST]}" if first else type(error).__name__


def _place(error: BaseException) -> str:
    """The deepest line of code that is neither an installed package's nor ours: that is what the caller can mend."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = Path(__file__).parents[1]
    theirs = [
        frame
        for frame in frames
        if "site-packages" not in frame.filename and not Path(frame.filename).is_relative_to(ours)
        and Path(frame.filename).is_file()
    ]  # fmt: skip
    return f" ({theirs[-1].filename}, line {theirs[-1].lineno})" if theirs else ""
