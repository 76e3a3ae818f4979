"""An error that Python raises below the compiled part, kept for the caller above: torch's C ABI has no room for it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import wraps
from typing import Any

from ajour._native import native

_this_thread = threading.local()


def kept(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, whose error the compiled part throws again with its text and `taken` gives back."""

    @wraps(function)
    def keeping(*args: Any) -> Any:
        try:
            return function(*args)
        except BaseException as error:
            _this_thread.error = error
            native.set_raised(f"{type(error).__name__}: {error}")
            raise

    return keeping


def taken(found: RuntimeError) -> BaseException:
    """What `found` stands for: the kept error whose text it carries, or itself."""
    error: BaseException | None = getattr(_this_thread, "error", None)
    _this_thread.error = None
    if error is not None and str(found).startswith(f"{type(error).__name__}: {error}"):
        return error
    return found
