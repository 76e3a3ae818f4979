"""The build backend: scikit-build-core's, which also asks for CUTLASS's headers where a CUDA compiler will read them.

pip calls it only for an isolated build; without isolation CMake takes the headers that the environment has, or none
(cmake/sm90.cmake).
"""

from __future__ import annotations

import os
import shutil
from typing import Any

from scikit_build_core import build as _build
from scikit_build_core.build import (
    build_editable,
    build_sdist,
    build_wheel,
    get_requires_for_build_sdist,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]

CUTLASS = "nvidia-cutlass>=4.2,<4.3"


def _headers() -> list[str]:
    wanted = os.environ.get("AJOUR_CUDA", "AUTO") != "OFF"
    return [CUTLASS] if wanted and (os.environ.get("CUDACXX") or shutil.which("nvcc")) else []


def get_requires_for_build_wheel(config_settings: dict[str, Any] | None = None) -> list[str]:
    """What the build needs beside [build-system] in pyproject.toml."""
    return [*_build.get_requires_for_build_wheel(config_settings), *_headers()]


def get_requires_for_build_editable(config_settings: dict[str, Any] | None = None) -> list[str]:
    """The same for an editable install."""
    return [*_build.get_requires_for_build_editable(config_settings), *_headers()]
