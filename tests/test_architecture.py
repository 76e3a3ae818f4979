"""The house keeps its shape: sizes, import directions, and what the repo may speak of."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PYTHON = sorted([*ROOT.glob("python/**/*.py"), *ROOT.glob("tests/**/*.py"), *ROOT.glob("benchmarks/**/*.py")])
SHIPPED = [p for p in PYTHON if p.is_relative_to(ROOT / "python") or p.is_relative_to(ROOT / "benchmarks")]
DEVICE = sorted(p for p in ROOT.glob("csrc/**/*") if p.suffix in (".h", ".cpp", ".cu", ".cuh"))


def _lines(path: Path) -> int:
    return len(path.read_text().splitlines())


def test_files_fit_in_their_rooms() -> None:
    too_long = [f"{p.relative_to(ROOT)}: {_lines(p)}" for p in PYTHON if _lines(p) > 300]
    too_long += [f"{p.relative_to(ROOT)}: {_lines(p)}" for p in DEVICE if _lines(p) > 450]
    too_long += [f"{p.relative_to(ROOT)}: {_lines(p)}" for p in PYTHON if p.name == "__init__.py" and _lines(p) > 30]
    assert not too_long, too_long


def test_functions_fit_on_a_page() -> None:
    found = []
    for path in SHIPPED:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and node.end_lineno and node.end_lineno - node.lineno + 1 > 60:
                found.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name}")
    assert not found, found


def test_no_room_is_called_utils() -> None:
    names = [p.relative_to(ROOT) for p in PYTHON + DEVICE if p.stem in ("utils", "util", "helpers", "common", "misc")]
    assert not names, names


def test_imports_point_down() -> None:
    # on a copy that isn't the source tree, import-linter would silently check the wrong one
    tool = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run(
        [tool], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT / "python")}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_device_code_knows_neither_torch_nor_python() -> None:
    for path in DEVICE:
        text = path.read_text()
        assert not re.search(r'#include\s*[<"](torch|ATen|c10)/', text), path
        assert path.parent.name == "bindings" or not re.search(r'#include\s*[<"](pybind11|Python\.h)', text), path
        assert path.name == "ptx.cuh" or path.suffix not in (".cu", ".cuh") or "asm volatile" not in text, path


def test_nobody_catches_everything() -> None:
    found = []
    for path in SHIPPED:
        for node in ast.walk(ast.parse(path.read_text())):
            broad = isinstance(node, ast.ExceptHandler) and (
                node.type is None or (isinstance(node.type, ast.Name) and node.type.id == "Exception")
            )
            # a roll-back that raises again is the one good reason
            if broad and not any(isinstance(inner, ast.Raise) and inner.exc is None for inner in ast.walk(node)):
                found.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert not found, found


def test_public_names_have_docstrings() -> None:
    missing = []
    for path in SHIPPED:
        for node in ast.parse(path.read_text()).body:
            public = isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
            if public and not ast.get_docstring(node):
                missing.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name}")
        assert ast.get_docstring(ast.parse(path.read_text())), f"{path} has no docstring"
    assert not missing, missing


@pytest.mark.parametrize(
    "blocked", [(), ("triton",), ("transformers",), ("triton", "transformers", "matplotlib")], ids=str
)
def test_import_is_light_and_starts_no_cuda(blocked: tuple[str, ...]) -> None:
    code = (
        "import sys\n"
        f"for name in {blocked!r}: sys.modules[name] = None\n"
        "import torch, ajour\n"
        "assert not torch.cuda.is_initialized()\n"
        "heavy = [n for n in ('triton', 'transformers', 'matplotlib', 'typer') if sys.modules.get(n) is not None]\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
