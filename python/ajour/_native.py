"""The only import of `_C`, the compiled part; says how it was built."""

from __future__ import annotations

import importlib
from typing import Any

import torch  # noqa: F401  (its library must be loaded before the thread pool is looked up)

# by name: `from ajour import _C` would make every room depend on the package's front
native: Any = importlib.import_module("ajour._C")
native.bind_thread_pool()

HAS_CUDA: bool = native.has_cuda
