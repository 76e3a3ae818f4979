"""What depends on its key alone is made once for it, by whichever thread comes first, and room for it is bounded."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_a_thing_is_made_once_until_too_many_are_held(tmp_path: Path) -> None:
    source, program = Path(__file__).with_name("remembered.cpp"), tmp_path / "remembered"
    flags = ["-std=c++17", "-O1", "-fsanitize=undefined", "-fno-sanitize-recover=all", "-pthread", f"-I{ROOT / 'csrc'}"]
    subprocess.run([shutil.which("c++") or "g++", *flags, str(source), "-o", str(program)], check=True)
    said = subprocess.run([program], capture_output=True, text=True, check=True).stdout.splitlines()
    assert said == ["1x2 1", "2x1 2", "1x2 2", "2x1 2", "3x3 3", "3x3 3", "1x2 4", "50"]


def test_maps_of_a_weight_are_made_in_its_first_call_and_are_those_that_cutlass_makes(
    cutlass: Path, tmp_path: Path
) -> None:
    """In a call with a new weight its two and twice that of x, in each later one that of x alone."""
    source, program = Path(__file__).with_name("weight_maps.cu"), tmp_path / "weight_maps"
    flags = ["-std=c++17", "-w", "-DNDEBUG", "--expt-relaxed-constexpr", "-arch=sm_90a", "-I", str(ROOT / "csrc")]
    subprocess.run(["nvcc", *flags, "-isystem", str(cutlass), str(source), "-o", str(program)], check=True)
    said = subprocess.run([program], capture_output=True, text=True, check=True).stdout
    assert said == "0 calls differ; 64 maps in 16 first calls, 80 in 80 later ones\n"
