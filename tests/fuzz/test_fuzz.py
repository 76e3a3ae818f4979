"""The fuzz target itself: it is the same in every run, finds what is planted, and its first cases find nothing."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(autouse=True)
def from_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(ROOT))


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)


PLANTED = """
import sys
from pathlib import Path
from tests.fuzz import worker
from tests.fuzz.corpus import Case
def use(path):
    {}
worker.corpus = lambda: [Case("planted", {{"x": b"abc"}}, use)]
state = Path(sys.argv[1] if len(sys.argv) > 1 else "/dev/null")
import tempfile
with tempfile.NamedTemporaryFile("wb") as file:
    file.write(b" " * worker.LINE)
    file.flush()
    sys.exit(worker.run(0, 200, Path(file.name)))
"""


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("exec('1') if path.read_bytes() != b'abc' else None", "Noticed: exec"),
        ("bytearray(2**30) if path.read_bytes() != b'abc' else None", "MemoryError"),
        ("held.append(b'x' * 2**21) if path.read_bytes() != b'abc' else None", "resident memory grew"),
    ],
)
def test_planted_faults_are_found(fault: str, said: str) -> None:
    done = run("held = []\n" + PLANTED.format(fault))
    assert done.returncode != 0
    assert said in done.stdout + done.stderr


def test_a_refusal_is_no_finding() -> None:
    done = run("from ajour import AjourError\n" + PLANTED.format("raise AjourError('no')"))
    assert (done.returncode, done.stdout) == (0, "accepted 0\n"), done.stderr


def test_mutations_are_the_same_in_every_run() -> None:
    from tests.fuzz.mutations import mutated

    one, two = ([mutated(b"abcdef" * 50, b"xyz" * 9, random.Random(seed)) for seed in range(300)] for _ in range(2))
    assert one == two
    assert len(set(one)) > 250


def test_the_first_cases_find_nothing() -> None:
    command = [sys.executable, "-m", "tests.fuzz", "--files", "2000", "--workers", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("2000 files, ")
