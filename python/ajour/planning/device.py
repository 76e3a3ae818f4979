"""The kind of device that a plan was measured on, and what two of a kind have in common."""

from __future__ import annotations

import os
import platform
import time
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import torch

from ajour._native import native

BUSY = 0.1  # share of the processor time that others may take before a report says so
SHORTEST = 1.0  # seconds of all cores below which the share of others is no figure: the system counts in 10 ms


@dataclass(frozen=True)
class Device:
    """A kind of device; plans made on one serve every other of the same kind.

    name:  the CPU's model name, or the GPU's.
    level: the best instruction set of a CPU that kernels are compiled for ("avx512bf16"), a GPU's capability ("sm_90").
    torch: the version without its build suffix; a new minor version brings other dense kernels, so it is another kind.
    threads: those that torch used while measuring; written down, not compared.
    """

    type: str
    name: str
    level: str
    torch: str
    threads: int

    def __str__(self) -> str:
        threads = f", {self.threads} thread{'s' if self.threads != 1 else ''}" if self.type == "cpu" else ""
        return f"{self.name} ({self.level}{threads}, torch {self.torch})"

    def same_kind(self, other: Device) -> bool:
        """Whether a plan measured on the one holds on the other."""
        mine, others = (d.torch.split(".")[:2] for d in (self, other))
        return (self.type, self.name, self.level) == (other.type, other.name, other.level) and mine == others


def this_device(device: torch.device | str = "cpu") -> Device:
    """What is under `device` on this machine; starts a CUDA context only if asked for a CUDA device."""
    device = torch.device(device)
    version = torch.__version__.split("+")[0]
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        return Device(
            "cuda", torch.cuda.get_device_name(device), f"sm_{major}{minor}", version, torch.get_num_threads()
        )
    return Device("cpu", _cpu_name(), native.best_cpu_isa(), version, torch.get_num_threads())


@lru_cache(maxsize=1)
def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def last_level_cache(device: torch.device | str = "cpu") -> int:
    """Bytes of the largest cache that a core of this device reads through; 32 MiB where the system does not say."""
    device = torch.device(device)
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).L2_cache_size)
    return _cpu_cache()


@lru_cache(maxsize=1)
def _cpu_cache() -> int:
    sizes = [_bytes(path.read_text()) for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")]
    return max(sizes, default=32 << 20)


@dataclass
class OtherWork:
    """Whether other programs were using this machine's cores since this was made; knows nothing outside Linux."""

    since: tuple[float, float, float] | None = field(default_factory=lambda: _processor_time())

    def share(self) -> float:
        """Others' part of all processor time, 0 to 1."""
        now = _processor_time()
        if self.since is None or now is None:
            return 0.0
        total, busy, own = (b - a for a, b in zip(self.since, now, strict=True))
        return max(0.0, busy - own) / total if total > SHORTEST else 0.0

    def warning(self) -> str | None:
        """One sentence where others took enough to disturb what was measured."""
        share = self.share()
        if share <= BUSY:
            return None
        taken = f"other programs took {share:.0%} of this machine's processor time meanwhile"
        return f"{taken}; measure again when it is quiet"


def _processor_time() -> tuple[float, float, float] | None:
    """Seconds of all cores (total, busy) and of this process."""
    stat = Path("/proc/stat")
    if not stat.is_file():
        return None
    ticks = [int(each) for each in stat.read_text().split("\n", 1)[0].split()[1:9]]
    total, idle = sum(ticks), ticks[3] + ticks[4]
    hertz = os.sysconf("SC_CLK_TCK")
    return total / hertz, (total - idle) / hertz, time.process_time()


def _bytes(text: str) -> int:
    """'32768K' -> bytes, as sysfs writes it."""
    text = text.strip()
    unit = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}.get(text[-1:], 1)
    return int(text.rstrip("KMG")) * unit
