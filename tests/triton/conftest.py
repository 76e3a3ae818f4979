"""Triton's interpreter is chosen when Triton is imported, so these tests are a run of their own.

`TRITON_INTERPRET=1 python -m pytest tests/triton`; without the variable nothing here is collected, and asking for this
folder alone is an error.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
_HERE = Path(__file__).parent


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leaves this folder out of a run without the interpreter."""
    return None if _INTERPRETED else True


if not _INTERPRETED and any(Path(arg.split("::")[0]).resolve().is_relative_to(_HERE) for arg in sys.argv[1:]):
    pytest.exit("tests/triton needs the interpreter: TRITON_INTERPRET=1 python -m pytest tests/triton", returncode=4)


@pytest.fixture(autouse=True, scope="session")
def rounded_bfloat16() -> None:
    """bfloat16 as a GPU has it: Triton 3.6's interpreter cuts float32 off instead of rounding, and dots raw bits."""
    import triton.language as tl
    from triton.runtime import interpreter

    builder, handle = interpreter.InterpreterBuilder, interpreter.TensorHandle
    plain_cast, plain_dot = builder.cast_impl, builder.create_dot

    def widened(source: Any) -> Any:
        if source.dtype.scalar != tl.bfloat16:
            return source
        return handle((source.data.astype("uint32") << 16).view("float32"), tl.float32)

    def cast(self: Any, source: Any, to: Any) -> Any:
        if source.dtype.scalar == tl.float32 and to.scalar == tl.bfloat16:
            rounded = torch.from_numpy(np.ascontiguousarray(source.data)).bfloat16().view(torch.uint16)
            return handle(rounded.numpy(), tl.bfloat16)
        return plain_cast(self, source, to)

    def dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        return plain_dot(self, widened(a), widened(b), *rest)

    builder.cast_impl, builder.create_dot = cast, dot
