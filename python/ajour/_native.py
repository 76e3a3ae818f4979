"""The only import of `_C`, the compiled part; says how it was built."""

from __future__ import annotations

import torch  # noqa: F401  (its library must be loaded before the thread pool is looked up)

from ajour import _C

_C.bind_thread_pool()

HAS_CUDA: bool = _C.has_cuda
native = _C
