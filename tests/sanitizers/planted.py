"""A run that must die: `python planted.py BUG` commits one planted bug, and the sanitizers must name it.

Importing it, as the sanitized test run does, asserts that the compiled part in use is the sanitized one.
"""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

import torch

from ajour._native import native

LEVELS = ("portable", "avx2", "avx512", "avx512bf16")
ROWS, SIDE = 4, 64

TESTED = Path(__file__).resolve().parents[2] / "build" / "sanitize" / "package" / "ajour"
assert Path(native.__file__).parent == TESTED, f"{native.__file__} is not the sanitized build in {TESTED}"
ctypes.CDLL(native.__file__).ajour_planted_overflow  # noqa: B018  (only that build has it)


def short_x(level: str) -> None:
    """A kernel of that level, told of one row of x more than there is."""
    native.set_cpu_isa(level)
    layout = native.NMPanels(SIDE, SIDE, 2, 4, 4, False)
    panels, codes = torch.ones(layout.values), torch.zeros(layout.code_bytes, dtype=torch.uint8)
    x, y = torch.ones(ROWS, SIDE), torch.empty(ROWS + 1, SIDE)
    kernel = native.nm_linear(layout, 0)
    kernel([panels.data_ptr(), codes.data_ptr()], x.data_ptr(), ROWS + 1, SIDE, 0, 0, 0, y.data_ptr())


def commit(bug: str) -> None:
    """Does what no code may do."""
    library = ctypes.CDLL(native.__file__)
    if bug == "overflow":  # in memory that torch allocated, as every kernel's is
        library.ajour_planted_overflow(ctypes.c_void_p(torch.ones(SIDE).data_ptr()), ctypes.c_int64(SIDE))
    elif bug == "undefined":
        library.ajour_planted_undefined(ctypes.c_int32(2**31 - 1))
    else:
        short_x(bug)
    sys.exit(f"the sanitizers did not see the bug {bug!r}")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        commit(sys.argv[1])
    sys.stdout.write(" ".join(LEVELS[: LEVELS.index(native.best_cpu_isa()) + 1]) + "\n")
