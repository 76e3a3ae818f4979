"""`python -m tests.fuzz --files 1000000` or `--seconds 60`: mutated files through every reader and ajour.load.

Case N is the same in every run. A case that crashes, hangs, takes much memory, runs code, or raises anything but an
AjourError is printed with its number, and `--first N --files 1` runs it again.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock

from tests.fuzz.worker import LINE

CHUNK = 20000  # cases for one process, which takes seconds to start


@dataclass
class Campaign:
    """What is to be run, and what came of it."""

    next: int
    last: int
    until: float
    done: int = 0
    accepted: int = 0
    findings: list[str] = field(default_factory=list)
    lock: Lock = field(default_factory=Lock)

    def work(self) -> None:
        """One worker after another, until there is nothing left."""
        while True:
            with self.lock:
                first, self.next = self.next, min(self.next + CHUNK, self.last)
                if first >= self.last or time.monotonic() > self.until:
                    return
                end = self.next
            while first < end:
                first = self.run(first, end)

    def run(self, first: int, end: int) -> int:
        """Where to go on: after the chunk, or after the case that ended its process."""
        with tempfile.NamedTemporaryFile("w+", prefix="ajour-fuzz-") as state:
            state.write(" " * LINE)
            state.flush()
            command = [sys.executable, "-m", "tests.fuzz.worker", str(first), str(end), state.name]
            done = subprocess.run(command, capture_output=True, text=True)
            state.seek(0)
            line = state.read().split()
        reached = end if done.returncode == 0 else int(line[0]) + 1 if line else end
        with self.lock:
            self.done += reached - first
            if done.returncode == 0:
                self.accepted += int(done.stdout.split()[-1])
            else:
                said = (done.stdout + done.stderr).strip()[-3000:]
                self.findings.append(f"case {' '.join(line)}, exit status {done.returncode}:\n{said}")
                print(self.findings[-1], flush=True)
            if reached % (CHUNK * 5) == 0:
                print(f"{self.done} files, {len(self.findings)} findings", flush=True)
        return reached


def main() -> int:
    """The exit status: 1 if anything was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("--files", type=int, default=10**9)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    asked = parser.parse_args()
    campaign = Campaign(asked.first, asked.first + asked.files, time.monotonic() + asked.seconds)
    with ThreadPoolExecutor(asked.workers) as pool:
        for worker in [pool.submit(campaign.work) for _ in range(asked.workers)]:
            worker.result()
    print(f"{campaign.done} files, {campaign.accepted} of them still readable, {len(campaign.findings)} findings")
    return 1 if campaign.findings or not campaign.done else 0


if __name__ == "__main__":
    if not Path("tests/fuzz/worker.py").is_file():
        sys.exit("run it from the root of the repository")
    sys.exit(main())
