"""The script for a machine with a GPU keeps what it has, whatever fails; its commands are stand-ins here."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
DECODE, BLOCKS = "--only 2:4,1:4,unstructured", "--only block 64x64,block"  # what tells the steps apart
ROW = (
    '{"op": "nm_linear", "kernel": "cuda_decode", "config": "c2 s4", "pattern": "2:4", "density": 0.5, "m": 8, '
    '"sparse_us": 10, "speedup": 1.5, "limit_fraction": 0.8, "error_ratio": 0.1}'
)
PYTHON = """#!/bin/sh
echo "python3 $*" >>"$CALLS"
case "$*" in
  *get_device_capability*) echo 90 ;;
  *gpu_summary.py*) exec "{real}" "$@" ;;
  *"{fails}"*) echo broken; exit 1 ;;
  *"{hangs}"*) sleep 60 ;;
  *"check --results"*) echo "1 met, 2 missed, 3 not measured" ;;
  *"--json "*) echo '{{"rows": [{row}]}}' >"$(echo "$*" | sed 's/.*--json \\([^ ]*\\).*/\\1/')" ;;
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
    _command(folder / "python3", _python())
    return folder


def _python(fails: str = "nothing fails", hangs: str = "nothing hangs") -> str:
    """A python3 that fails and hangs where told."""
    return PYTHON.format(fails=fails, hangs=hangs, real=sys.executable, row=ROW)


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
    order = [
        "pip install",
        '"doctor"',
        "pytest",
        "--tool",
        DECODE,
        "--only tiny,2:4",
        BLOCKS,
        "--rows 256,512",
        "/models.json",
        "/tokens.json",
        "/train.json",
        "--only 2:4,e4m3",
        "benchmarks check --results",
        "ncu",
        "gpu_summary.py",
    ]
    places = [told.index(each) for each in order]
    assert places == sorted(places)
    for tool in ("memcheck", "racecheck", "initcheck", "synccheck"):  # side by side
        assert told.index("--tool") <= told.index(f"--tool {tool}") < told.index(DECODE)
    assert "CMAKE_CUDA_ARCHITECTURES=90a-real" in told
    assert all("--commit abc" in call for call in calls if "--json" in call)
    kept = {p.name for p in (stand_ins.parent / "out").iterdir()}
    kept.remove("by_device")  # where the check finds what was measured
    assert kept == {
        "log.txt", "steps.txt", "tests.txt", "targets.txt", "ops.json", "models.json", "tokens.json", "train.json",
    }  # fmt: skip


def test_the_summary_comes_last_and_fits_a_page(stand_ins: Path) -> None:
    done, _ = _run(stand_ins, "9")
    page = done.stdout[done.stdout.index("summary of ") :].splitlines()
    assert len(page) <= 71
    assert [line.split(":")[0].strip() for line in page[3:24]] == [
        "build", "doctor", "tests", "sanitizer", "decode", "calls", "blocks", "prefill", "crossover", "e4m3",
        "training", "models", "tokens", "train", "decode_all", "many_all", "blocks_all", "targets", "check",
        "counters", "drain",
    ]  # fmt: skip
    assert page[-1] == "  1 met, 2 missed, 3 not measured"
    assert any(line.startswith("  ops.json: 1 rows, 0 wrong") for line in page)
    assert "    2:4 50%  8: 1.50x 80%  (cuda_decode)" in page


def test_the_next_run_goes_on_with_what_is_missing(stand_ins: Path) -> None:
    _command(stand_ins / "python3", _python(fails="/models.json"))
    assert _run(stand_ins, "9")[0].returncode == 1
    _command(stand_ins / "python3", _python())
    (stand_ins.parent / "calls").unlink()
    done, calls = _run(stand_ins, "9")
    assert done.returncode == 0
    assert "decode: done before" in done.stdout
    assert sum("--json" in call for call in calls) == 1
    assert any("/models.json --continue" in call for call in calls)
    assert any("pip install" in call for call in calls), "a machine may be another one: it is built for anew"
    assert any("check --results" in call for call in calls), "more was measured: it is judged anew"


def test_what_another_commit_left_is_set_aside(stand_ins: Path) -> None:
    for sha in ("abc", "def"):
        done, calls = _run(stand_ins, "9", "decode models", COMMIT=sha)
        assert done.returncode == 0
    assert sum("--json" in call for call in calls) == 4
    out = stand_ins.parent / "out"
    assert (out / "abc" / "ops.json").exists()
    assert (out / "steps.txt").read_text().startswith("commit: def")


def test_a_sanitizer_that_sees_no_planted_bug_fails(stand_ins: Path) -> None:
    _command(stand_ins / "compute-sanitizer", "#!/bin/sh\nexit 0\n")
    done, _ = _run(stand_ins, "9", "sanitizer")
    assert done.returncode == 1
    assert "memcheck did not see its planted bug" in done.stdout


def test_a_failing_step_stops_no_other(stand_ins: Path) -> None:
    _command(stand_ins / "python3", _python(fails=BLOCKS))
    done, _ = _run(stand_ins, "9")
    assert done.returncode == 1
    assert "blocks: failed with exit 1" in done.stdout
    assert "models: done in" in done.stdout
    assert "broken" in (stand_ins.parent / "out" / "log.txt").read_text()


def test_without_a_build_nothing_is_measured_and_every_step_says_so(stand_ins: Path) -> None:
    _command(stand_ins / "python3", _python(fails="pip install"))
    done, calls = _run(stand_ins, "9")
    assert done.returncode == 1
    assert not any("--json" in call for call in calls)
    assert done.stdout.count("not run: the build failed\n") >= 12
    assert "build: failed with exit 1" in done.stdout


def test_steps_can_be_picked(stand_ins: Path) -> None:
    done, calls = _run(stand_ins, "9", "decode models")
    assert done.returncode == 0
    assert not any("-m pip" in call or "-m pytest" in call for call in calls)
    assert sum("--json" in call for call in calls) == 2


def test_tests_that_passed_are_not_run_again_and_leave_time_for_the_first_figures(stand_ins: Path) -> None:
    _command(stand_ins / "python3", _python(fails="tests/gpu/test_sm90.py"))
    done, calls = _run(stand_ins, "9", "tests")
    assert done.returncode == 1
    assert sum("-m pytest" in call for call in calls) == len(list((ROOT / "tests" / "gpu").glob("test_*.py")))
    (stand_ins.parent / "calls").unlink()
    done, calls = _run(stand_ins, "9", "tests")
    assert [call.split()[-1] for call in calls if "-m pytest" in call] == ["tests/gpu/test_sm90.py"]
    done, calls = _run(stand_ins, "2", "sanitizer decode")  # 110 seconds, of which 120 are the benchmark's
    assert "sanitizer: not run: no time left" in done.stdout
    assert "decode: done in" in done.stdout


def test_the_crossover_is_measured_on_every_configuration(stand_ins: Path) -> None:
    done, calls = _run(stand_ins, "9", "build crossover drain", CUTLASS="/somewhere/include")
    assert done.returncode == 0, done.stdout + done.stderr
    told = " ".join(calls)
    assert "AJOUR_SM90_CONFIGS=ALL" in told
    assert "AJOUR_CUTLASS=/somewhere/include" in told
    assert "--rows 1,16,64,128,256,512,1024,2048,4096,8192,16384" in told
    assert "--kernel-name regex:device_kernel" in told


def test_time_is_kept_and_what_was_not_reached_is_said(stand_ins: Path) -> None:
    _command(stand_ins / "python3", _python(hangs=DECODE))
    copy = stand_ins.parent / "copy" / "benchmarks"
    copy.mkdir(parents=True)
    text = (ROOT / "benchmarks" / "gpu.sh").read_text()
    assert "* 60 - 10" in text
    shutil.copy(ROOT / "benchmarks" / "gpu.sh", copy)
    shutil.copy(ROOT / "benchmarks" / "gpu_summary.py", copy)
    (copy / "gpu.sh").write_text(text.replace("* 60 - 10", "* 7"))  # seven seconds for a minute
    environment = {**os.environ, "PATH": f"{stand_ins}:{os.environ['PATH']}", "CALLS": str(stand_ins.parent / "calls")}
    script = ["bash", str(copy / "gpu.sh"), str(stand_ins.parent / "out"), "1", "decode blocks"]
    done = subprocess.run(script, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "decode: out of time after" in done.stdout
    assert "blocks: not run: no time left" in done.stdout


def test_what_its_share_of_the_time_cut_off_has_a_second_chance(stand_ins: Path) -> None:
    slow_once = 'case "$*" in *"benchmarks tokens"*) [ -e "$CALLS.met" ] || { touch "$CALLS.met"; sleep 60; } ;; esac\n'
    _command(stand_ins / "python3", _python().replace("case", slow_once + "case", 1))
    copy = stand_ins.parent / "copy" / "benchmarks"
    copy.mkdir(parents=True)
    text = (ROOT / "benchmarks" / "gpu.sh").read_text()
    assert "measure tokens 120 tokens" in text
    shutil.copy(ROOT / "benchmarks" / "gpu_summary.py", copy)
    (copy / "gpu.sh").write_text(text.replace("measure tokens 120 tokens", "measure tokens 6 tokens"))
    environment = {**os.environ, "PATH": f"{stand_ins}:{os.environ['PATH']}", "CALLS": str(stand_ins.parent / "calls")}
    script = ["bash", str(copy / "gpu.sh"), str(stand_ins.parent / "out"), "9", "tokens"]
    done = subprocess.run(script, env=environment, capture_output=True, text=True, timeout=60)
    assert done.stdout.index("tokens: out of time after 6 s") < done.stdout.index("tokens: done in")


def test_a_hopper_build_without_cutlass_is_no_success(stand_ins: Path) -> None:
    _command(stand_ins / "python3", _python(fails="sm90_configs"))
    done, _ = _run(stand_ins, "9", "build decode")
    assert done.returncode == 1
    assert "build: failed: no cuda_sm90, as CUTLASS's headers were not found" in done.stdout
    assert "decode: done in" in done.stdout, "the rest is measured all the same"


def test_without_a_card_every_step_that_needs_one_is_not_run(stand_ins: Path) -> None:
    _command(stand_ins / "nvidia-smi", "#!/bin/sh\nexit 9\n")
    done, calls = _run(stand_ins, "9")
    assert done.returncode == 3
    assert "no GPU here" in done.stdout
    needing = ["build", "doctor", "tests", "sanitizer", "decode", "blocks", "prefill", "e4m3", "models", "tokens"]
    page = done.stdout[done.stdout.index("summary of ") :].splitlines()
    for name in [*needing, "train", "decode_all", "targets", "counters", "drain"]:
        assert f"  {name}: not run: this machine has no GPU" in page
    assert any(line.startswith("  check: done") for line in page), "it reads what is committed"
    assert "results: none, nothing was measured" in page
    assert not any("pip" in call or "--json" in call or "ncu" in call for call in calls)
