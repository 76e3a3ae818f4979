"""Starts the command line, or says in one line why ajour can't be imported here."""

from __future__ import annotations

import sys

ENVIRONMENT = 3  # the exit code of a machine that lacks something


def _load_torch() -> None:
    """Raises ImportError that names torch where it is there but can't be loaded."""
    try:
        import torch  # noqa: F401
    except ModuleNotFoundError:  # ajour says itself that there is none
        pass
    except (ImportError, OSError, RuntimeError, AttributeError, ValueError) as error:
        raise ImportError(
            f"torch is installed but can't be loaded: {error}; install it anew: pip install --force-reinstall torch"
        ) from error


def main() -> None:
    """`ajour`: exits with 3 where a package that ajour needs is missing, too old or broken."""
    try:
        _load_torch()
        from ajour.cli import main as run
    except (ImportError, OSError) as error:  # a library that can't be loaded is an OSError
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        remedy = f"; install it: pip install {missing}" if missing else ""
        sys.stderr.write(f"error: {' '.join(str(error).split())}{remedy}\n")
        sys.exit(ENVIRONMENT)
    run()
