"""The build backend: scikit-build-core's, which also asks for CUTLASS's headers where a CUDA compiler will read them.

pip calls it only for an isolated build; without isolation CMake takes the headers that the environment has, or none
(cmake/sm90.cmake).
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path
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
OLDEST_CUDA = (12, 5)  # as CMakeLists.txt has it


def _nvcc() -> str | None:
    """The compiler that CMake will find: $CUDACXX, that of the PATH, or $CUDA_PATH's."""
    if named := shlex.split(os.environ.get("CUDACXX", "")):
        return named[0]
    folder = os.environ.get("CUDA_PATH")
    return shutil.which("nvcc") or (shutil.which("nvcc", path=str(Path(folder) / "bin")) if folder else None)


def _new_enough(nvcc: str) -> bool:
    try:
        said = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=False).stdout
    except OSError:
        return False  # CMake will find that it can't be run
    release = re.search(r"release (\d+)\.(\d+)", said)
    return release is None or (int(release[1]), int(release[2])) >= OLDEST_CUDA


def _headers(config_settings: dict[str, Any] | None) -> list[str]:
    switch = (config_settings or {}).get("cmake.define.AJOUR_CUDA", os.environ.get("AJOUR_CUDA", "AUTO"))
    nvcc = None if switch == "OFF" else _nvcc()
    return [CUTLASS] if nvcc and _new_enough(nvcc) else []


def get_requires_for_build_wheel(config_settings: dict[str, Any] | None = None) -> list[str]:
    """What the build needs beside [build-system] in pyproject.toml."""
    return [*_build.get_requires_for_build_wheel(config_settings), *_headers(config_settings)]


def get_requires_for_build_editable(config_settings: dict[str, Any] | None = None) -> list[str]:
    """The same for an editable install."""
    return [*_build.get_requires_for_build_editable(config_settings), *_headers(config_settings)]
