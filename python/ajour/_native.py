"""The only import of `_C`, the compiled part; says how it was built."""

from __future__ import annotations

import importlib
from typing import Any

import torch  # noqa: F401  (its library must be loaded before its functions are looked up)

# by name: `from ajour import _C` would make every room depend on the package's front
try:
    native: Any = importlib.import_module("ajour._C")
except ImportError as error:
    raise ImportError(
        f"ajour's compiled part can't be loaded ({error}); build it for this Python: pip install --force-reinstall ."
    ) from error
native.bind_torch()

HAS_CUDA: bool = native.has_cuda
