"""The script for a machine with a GPU keeps what it has, whatever fails; its commands are stand-ins here."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
PYTHON = """#!/bin/sh
echo "python3 $*" >>"$CALLS"
case "$*" in
  -c*) echo 90 ;;
  *"{fails}"*) echo broken; exit 1 ;;
  *"{hangs}"*) sleep 60 ;;
  *"--json "*) echo "$*" | sed 's/.*--json \\([^ ]*\\).*/\\1/' | xargs touch ;;
esac
"""


@pytest.fixture
def stand_ins(tmp_path: Path) -> Path:
    """A folder of commands that only write down how they were called."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("nvidia-smi", "nvcc", "ncu"):
        _command(folder / name, f'#!/bin/sh\necho "{name} $*" >>"$CALLS"\n')
    found = 'case "$*" in */planted*) exit 9 ;; esac'
    _command(folder / "compute-sanitizer", f'#!/bin/sh\necho "compute-sanitizer $*" >>"$CALLS"\n{found}\n')
    _command(folder / "python3", PYTHON.format(fails="nothing fails", hangs="nothing hangs"))
    return folder


def _command(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


def _run(stand_ins: Path, *arguments: str, **more: str) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    calls = stand_ins.parent / "calls"
    calls.touch()
    environment = {**os.environ, "PATH": f"{stand_ins}:{os.environ['PATH']}", "CALLS": str(calls), **more}
    script = ["bash", str(ROOT / "benchmarks" / "gpu.sh"), str(stand_ins.parent / "out"), *arguments]
    done = subprocess.run(script, env=environment, capture_output=True, text=True, timeout=60)
    return done, calls.read_text().splitlines()


def test_it_builds_tests_sanitizes_and_measures_in_that_order(stand_ins: Path) -> None:
    done, calls = _run(stand_ins, "9", COMMIT="abc")
    assert done.returncode == 0, done.stdout + done.stderr
    told = " ".join(calls)
    order = ["pip install", "pytest", "--tool memcheck", "--tool racecheck", "--tool initcheck", "--tool synccheck"]
    order += ["ops-decode.json", "ops-blocks.json", "ops-prefill.json", "models-models.json", "tokens-tokens.json"]
    order += ["train-train.json", "ncu"]
    places = [told.index(each) for each in order]
    assert places == sorted(places)
    assert "CMAKE_CUDA_ARCHITECTURES=90a-real" in told
    assert all("--commit abc" in call for call in calls if "--json" in call)
    assert {"ops-decode.json", "models-models.json", "log.txt"} <= {
        p.name for p in (stand_ins.parent / "out").iterdir()
    }
    assert len(list((stand_ins.parent / "out").iterdir())) <= 8


def test_a_sanitizer_that_sees_no_planted_bug_fails(stand_ins: Path) -> None:
    _command(stand_ins / "compute-sanitizer", "#!/bin/sh\nexit 0\n")
    done, _ = _run(stand_ins, "9", "sanitizer")
    assert done.returncode == 1
    assert "memcheck did not see its planted bug" in done.stdout


def test_a_failing_step_stops_no_other(stand_ins: Path) -> None:
    _command(stand_ins / "python3", PYTHON.format(fails="ops-blocks.json", hangs="nothing hangs"))
    done, _ = _run(stand_ins, "9")
    assert done.returncode == 1
    assert "blocks: exit 1" in done.stdout
    assert "models: exit 0" in done.stdout
    assert "broken" in (stand_ins.parent / "out" / "log.txt").read_text()


def test_without_a_build_nothing_is_measured(stand_ins: Path) -> None:
    _command(stand_ins / "python3", PYTHON.format(fails="pip install", hangs="nothing hangs"))
    done, calls = _run(stand_ins, "9")
    assert done.returncode == 1
    assert not any("--json" in call for call in calls)


def test_steps_can_be_picked(stand_ins: Path) -> None:
    done, calls = _run(stand_ins, "9", "decode models")
    assert done.returncode == 0
    assert not any("-m pip" in call or "-m pytest" in call for call in calls)
    assert sum("--json" in call for call in calls) == 2


def test_the_crossover_is_measured_on_every_configuration(stand_ins: Path) -> None:
    done, calls = _run(stand_ins, "9", "build crossover drain", CUTLASS="/somewhere/include")
    assert done.returncode == 0, done.stdout + done.stderr
    told = " ".join(calls)
    assert "AJOUR_SM90_CONFIGS=ALL" in told
    assert "AJOUR_CUTLASS=/somewhere/include" in told
    assert "--rows 1,16,64,128,256,512,1024,2048,4096,8192,16384" in told
    assert "--kernel-name regex:device_kernel" in told


def test_time_is_kept_and_what_was_not_reached_is_said(stand_ins: Path) -> None:
    _command(stand_ins / "python3", PYTHON.format(fails="nothing fails", hangs="ops-decode.json"))
    copy = stand_ins.parent / "copy" / "benchmarks"
    copy.mkdir(parents=True)
    text = (ROOT / "benchmarks" / "gpu.sh").read_text()
    assert "* 60 - 10" in text
    shutil.copy(ROOT / "benchmarks" / "gpu.sh", copy)
    (copy / "gpu.sh").write_text(text.replace("* 60 - 10", "* 7"))  # seven seconds for a minute
    environment = {**os.environ, "PATH": f"{stand_ins}:{os.environ['PATH']}", "CALLS": str(stand_ins.parent / "calls")}
    script = ["bash", str(copy / "gpu.sh"), str(stand_ins.parent / "out"), "1", "decode blocks"]
    done = subprocess.run(script, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "decode: out of time, what it wrote is kept" in done.stdout
    assert "blocks: no time left" in done.stdout


def test_a_machine_without_a_gpu_is_told_so(stand_ins: Path) -> None:
    _command(stand_ins / "nvidia-smi", "#!/bin/sh\nexit 9\n")
    done, calls = _run(stand_ins, "9")
    assert done.returncode == 3
    assert "no GPU here" in done.stdout
    assert not any("-m pip" in call for call in calls)
