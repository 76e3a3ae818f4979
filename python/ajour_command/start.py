"""Starts the command line, or says in one line why ajour can't be imported here."""

from __future__ import annotations

import sys

ENVIRONMENT = 3  # the exit code of a machine that lacks something


def main() -> None:
    """`ajour`: exits with 3 where a package that ajour needs is missing, too old or broken."""
    try:
        from ajour.cli import main as run
    except (ImportError, OSError) as error:  # a library that can't be loaded is an OSError
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        sys.exit(ENVIRONMENT)
    run()
