"""The machine: torch, processor, threads, compilers, GPU."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import torch

from ajour import _native
from ajour.diagnosis.findings import Finding
from ajour.planning.device import this_device

_HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def version_line() -> str:
    """Versions and devices in one line, for `ajour --version`."""
    devices = ["cpu"] + [f"cuda:{i}" for i in range(torch.cuda.device_count() if torch.cuda.is_available() else 0)]
    return f"ajour {version('ajour')} · torch {torch.__version__} · {' · '.join(map(_short, devices))}"


def _short(name: str) -> str:
    device = this_device(name)
    return f"{device.name} ({device.level}{f', {device.threads} threads' if device.type == 'cpu' else ''})"


def look() -> Iterator[Finding]:
    """What is there, in the order of a reader's questions."""
    yield Finding("torch", "ok", torch.__version__)  # an older one than needed is refused at import
    yield from (each() for each in (_onednn, _isa, _threads, _pages, _cxx, _compiler, _cuda_build, _gpu))


def _onednn() -> Finding:
    if torch.backends.mkldnn.is_available():
        return Finding("oneDNN", "ok", "in this torch; the planner times it against torch's own linear")
    return Finding("oneDNN", "absent", "not in this torch", "dense layers run on torch's own linear alone")


def _isa() -> Finding:
    used, best = _native.native.cpu_isa(), _native.native.best_cpu_isa()
    return Finding("instruction set", "ok", f"{used} (the best that is built and usable here: {best})")


def _threads() -> Finding:
    return Finding("thread pool", "ok", f"torch's own, {torch.get_num_threads()} threads")


def _pages() -> Finding:
    """Whether the system gives huge pages to those who ask: `[madvise]` and `[always]` do, `[never]` does not."""
    if not _HUGE_PAGES.exists():
        return Finding("huge pages", "absent", "this system does not say")
    found = _HUGE_PAGES.read_text()
    wanted = found[found.find("[") + 1 : found.find("]")]
    if wanted in ("madvise", "always"):
        return Finding("huge pages", "ok", f"{wanted}: packed weights lie on them")
    return Finding("huge pages", "absent", wanted, f"few rows are faster after, as root: echo madvise > {_HUGE_PAGES}")


def _cuda_build() -> Finding:
    if _native.HAS_CUDA:
        built = [f"{name} {', '.join(configs)}" for name, configs in _native.native.sm90_configs.items() if configs]
        said = "; ".join(built) or "not built, for want of CUTLASS's headers (nvidia-cutlass)"
        return Finding("CUDA kernels", "ok", f"built in; cuda_sm90: {said}")
    return Finding("CUDA kernels", "absent", "not built", "put nvcc on the PATH and reinstall ajour with AJOUR_CUDA=ON")


def _gpu() -> Finding:
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        return Finding("GPU", "ok", ", ".join(names))
    if torch.version.cuda is None:
        return Finding("GPU", "absent", "this torch is a CPU build", "for a GPU install a CUDA build of torch")
    return Finding("GPU", "absent", "torch sees none", "check the driver with nvidia-smi")


def _cxx() -> Finding:
    wanted = [os.environ.get("CXX", ""), "g++", "clang++", "c++"]
    found = next((path for name in wanted if name and (path := shutil.which(name))), None)
    if found:
        return Finding("C++ compiler", "ok", found)
    remedy = "needed only by torch.compile and to build ajour: install g++ or clang++"
    return Finding("C++ compiler", "absent", "none on the PATH", remedy)


def _compiler() -> Finding:
    nvcc = shutil.which("nvcc")
    if nvcc:
        return Finding("CUDA compiler", "ok", nvcc)
    return Finding("CUDA compiler", "absent", "no nvcc on the PATH", "needed only to build ajour's CUDA kernels")
