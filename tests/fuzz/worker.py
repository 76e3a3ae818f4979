"""Reads mutated files in a process that can't allocate much, and where any code that a file might run is noticed.

`python -m tests.fuzz.worker FIRST LAST STATE`: the case under way is written to STATE before it runs, so that whoever
started this process knows which one killed it.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import traceback
import typing
import warnings
from pathlib import Path
from typing import Any

import torch
from rich.cells import cell_len
from tests.fuzz.corpus import Case, corpus
from tests.fuzz.mutations import CANARY, mutated

from ajour import AjourError

HEADROOM = 512 * 2**20  # bytes of address space that all cases together may take on top of what imports took
GROWTH = 256 * 2**20  # bytes of resident memory, the same
CHECKED = 64  # cases between two looks at memory and clock: each look is a call of the system, slower than a case
LONGEST = 60  # seconds for so many
LINE = 80  # bytes that say which case is under way
_FORBIDDEN = (
    "exec", "code.__new__", "marshal.loads", "pickle.find_class", "ctypes.dlopen", "subprocess.Popen", "socket.connect",
    "os.system", "os.exec", "os.fork", "os.posix_spawn", "os.putenv", "os.remove", "os.rename", "shutil.rmtree",
)  # fmt: skip


class Noticed(BaseException):
    """Something ran that no file may make run."""


class Watch:
    """An audit hook that is only strict while a case runs; typing evaluates the annotations of our own classes."""

    def __init__(self) -> None:
        self.strict = False
        sys.addaudithook(self)

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        if self.strict and event in _FORBIDDEN and sys._getframe(1).f_code.co_filename != typing.__file__:
            self.strict = False
            raise Noticed(f"{event} {args!r:.200}")


def written(case: Case, cases: list[Case], seed: int, folder: Path) -> Path:
    """The case with one of its files mutated, on disk."""
    rng = random.Random(seed)
    victim = rng.choice(sorted(case.files))
    other = rng.choice(cases)
    for name, data in case.files.items():
        held = mutated(data, other.files[sorted(other.files)[0]], rng) if name == victim else data
        (folder / name).write_bytes(held)
    return folder / "x" if len(case.files) == 1 else folder


def run(first: int, last: int, state: Path) -> int:
    """Cases first to last-1; how many were read without a refusal is printed at the end."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    cases = corpus()
    room = Path("/dev/shm") if Path("/dev/shm").is_dir() else None
    folder = Path(tempfile.mkdtemp(prefix="ajour-fuzz-", dir=room))
    try:
        return _run(cases, first, last, state, folder)
    finally:
        shutil.rmtree(folder)


def _run(cases: list[Case], first: int, last: int, state: Path, folder: Path) -> int:
    for case in cases:  # what is imported late is imported now
        for name, data in case.files.items():
            (folder / name).write_bytes(data)
        with contextlib.suppress(AjourError):
            case.use(folder / "x" if len(case.files) == 1 else folder)
        for name in case.files:
            (folder / name).unlink()
    b"x".decode("cp437")  # the encoding of damaged names in a zip file
    cell_len("é")
    limit = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE") + HEADROOM
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    most = _peak() + GROWTH
    watch, accepted = Watch(), 0
    with state.open("r+b") as file, mmap.mmap(file.fileno(), LINE) as line:  # outlives this process
        for seed in range(first, last):
            case = cases[seed % len(cases)]
            line[:] = f"{seed} {case.name}".encode().ljust(LINE)[:LINE]
            if seed % CHECKED == 0:
                signal.alarm(LONGEST)
            accepted += _one(case, cases, seed, folder, watch)
            if seed % CHECKED == 0 or seed + 1 == last:
                grown = _peak() > most
                if grown or CANARY.exists():
                    what = f"resident memory grew by more than {GROWTH} bytes" if grown else "a payload ran"
                    print(f"one of the {CHECKED} seeds up to {seed}: {what}")
                    return 1
    signal.alarm(0)
    print(f"accepted {accepted}")
    return 0


def _peak() -> int:
    """Bytes of resident memory at most so far. Not getrusage's: that counts from the process that started this one."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def _one(case: Case, cases: list[Case], seed: int, folder: Path, watch: Watch) -> int:
    path = written(case, cases, seed, folder)
    watch.strict = True
    try:
        case.use(path)
        return 1
    except AjourError:
        return 0
    except BaseException:
        watch.strict = False
        print(f"seed {seed} ({case.name}):\n{traceback.format_exc()}", flush=True)
        sys.exit(1)
    finally:
        watch.strict = False


if __name__ == "__main__":
    sys.exit(run(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])))
