"""What ajour can't be imported without: a torch that is new enough. Imported first, and says so in one sentence."""

from __future__ import annotations

OLDEST = (2, 10)  # its thread pool can be called from C


def check(version: str) -> None:
    """Raises ImportError for a torch that is too old, with what to do."""
    numbers = tuple(int(part) for part in version.split("+")[0].split(".")[:2])
    if numbers < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        raise ImportError(f"ajour needs torch {oldest} or newer, found {version}; update it: pip install -U torch")


try:
    import torch
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise
    raise ImportError("ajour needs torch, and there is none here; install it: pip install torch") from None
check(torch.__version__)
