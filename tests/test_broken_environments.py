"""Every broken environment gets one clear line with a remedy and the right exit code; nothing ends in a traceback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).resolve().parent
START = "from ajour_command.start import main; main()"


def ajour(*args: object, stubs: Path | None = None, path: str | None = None) -> subprocess.CompletedProcess[str]:
    """`ajour ARGS` in a process of its own, with `stubs` first on PYTHONPATH and PATH replaced."""
    folders = [str(folder) for folder in (stubs, HERE) if folder is not None]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(folders), "COLUMNS": "200"}
    if path is not None:
        environment = {key: value for key, value in environment.items() if key not in ("CXX", "CC")} | {"PATH": path}
    command = [sys.executable, "-c", START, *map(str, args)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def without(folder: Path, *packages: str) -> Path:
    """A folder that hides packages, as if they were not installed."""
    lines = ["import sys", *(f"sys.modules[{package!r}] = None" for package in packages)]
    (folder / "sitecustomize.py").write_text("\n".join(lines))
    return folder


def broken(folder: Path, error: str, *packages: str) -> Path:
    """A folder with packages that are there, and raise when they are imported."""
    for package in packages:
        (folder / package).mkdir()
        (folder / package / "__init__.py").write_text(f"raise {error}")
    return folder


def one_line(done: subprocess.CompletedProcess[str], code: int) -> str:
    """What was said, once it is one line and the code is right."""
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr


def fake_torch(folder: Path, text: str) -> Path:
    (folder / "torch").mkdir()
    (folder / "torch" / "__init__.py").write_text(text)
    return folder


def test_no_torch(tmp_path: Path) -> None:
    said = one_line(ajour("doctor", stubs=fake_torch(tmp_path, "raise ModuleNotFoundError(name='torch')")), 3)
    assert "ajour needs torch, and there is none here; install it: pip install torch" in said


def test_torch_too_old(tmp_path: Path) -> None:
    said = one_line(ajour("doctor", stubs=fake_torch(tmp_path, "__version__ = '2.4.1+cu121'")), 3)
    assert "ajour needs torch 2.10 or newer, found 2.4.1+cu121; update it: pip install -U torch" in said


def test_torch_that_can_not_be_loaded(tmp_path: Path) -> None:
    stubs = broken(tmp_path, "OSError('libcudart.so.13: cannot open shared object file')", "torch")
    said = one_line(ajour("doctor", stubs=stubs), 3)
    assert "torch is installed but can't be loaded: libcudart.so.13: cannot open shared object file" in said
    assert "pip install --force-reinstall torch" in said


def test_a_package_of_the_command_line_is_missing(tmp_path: Path) -> None:
    assert "install it: pip install typer" in one_line(ajour("doctor", stubs=without(tmp_path, "typer")), 3)


def test_no_compiled_part(tmp_path: Path) -> None:
    said = one_line(ajour("doctor", stubs=without(tmp_path, "ajour._C")), 3)
    assert "ajour's compiled part can't be loaded" in said
    assert "pip install --force-reinstall" in said


def test_the_doctor_names_what_is_missing_with_a_remedy_each(tmp_path: Path) -> None:
    stubs = without(tmp_path, "triton", "transformers", "matplotlib")
    done = ajour("doctor", "--json", stubs=stubs, path="/nowhere")
    assert done.returncode == 0, done.stderr  # a CPU needs none of these
    found = {finding["subject"]: finding for finding in json.loads(done.stdout)["findings"]}
    for subject, remedy in {
        "Triton": "pip install 'triton>=3.6'",
        "transformers": "pip install transformers",
        "matplotlib": "pip install matplotlib",
        "C++ compiler": "install g++ or clang++",
        "CUDA compiler": "needed only to build",
    }.items():
        assert found[subject]["status"] == "absent", subject
        assert remedy in found[subject]["remedy"]
    assert found["nm_linear · triton (cpu)"]["status"] == "absent"
    assert found["nm_linear · cpu (cpu)"]["status"] == "ok"


@pytest.mark.parametrize("error", ["ImportError('no GLIBCXX')", "OSError('no GLIBCXX')", "RuntimeError('no GLIBCXX')"])
def test_the_doctor_names_what_is_there_but_broken(tmp_path: Path, error: str) -> None:
    done = ajour("doctor", "--json", stubs=broken(tmp_path, error, "triton", "transformers", "matplotlib"))
    assert done.returncode == 3, done.stderr
    found = {finding["subject"]: finding for finding in json.loads(done.stdout)["findings"]}
    for subject in ("Triton", "transformers", "matplotlib"):
        assert found[subject]["status"] == "broken", subject
        assert found[subject]["found"] == f"broken: {error.partition('(')[0]}: no GLIBCXX"
        assert found[subject]["remedy"] == f"pip install --force-reinstall {subject.lower()}"


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU and its driver")
@pytest.mark.parametrize("verb", ["plan", "bench", "limits"])
def test_no_gpu_driver(verb: str) -> None:
    said = one_line(ajour(verb, "factories:pruned", "--shape", "4x64", "--device", "cuda"), 3)
    assert "torch sees no CUDA device here" in said
    assert "or use --device cpu" in said


def test_no_matplotlib_is_said_before_anything_is_measured(tmp_path: Path) -> None:
    stubs = without(tmp_path, "matplotlib")
    page = tmp_path / "page.html"
    said = one_line(ajour("bench", "factories:number", "--html", page, stubs=stubs), 3)  # no model is even looked for
    assert "a page with charts needs matplotlib; install it with: pip install matplotlib" in said
    assert not page.exists()


def test_a_broken_matplotlib_is_said_before_anything_is_measured(tmp_path: Path) -> None:
    page, stubs = tmp_path / "page.html", broken(tmp_path, "OSError('libpng.so: cannot open')", "matplotlib")
    said = one_line(ajour("bench", "factories:number", "--html", page, stubs=stubs), 3)
    assert "the one here is broken (OSError: libpng.so: cannot open)" in said
    assert "pip install --force-reinstall matplotlib" in said
    assert not page.exists()


def test_broken_transformers(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    said = one_line(
        ajour("plan", folder, stubs=broken(tmp_path, "RuntimeError('numpy is too old')", "transformers")), 3
    )
    assert "transformers, and the one here is broken (RuntimeError: numpy is too old)" in said
    assert "pip install --force-reinstall transformers" in said


def test_no_transformers(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    said = one_line(ajour("plan", folder, stubs=without(tmp_path, "transformers")), 3)
    assert "a Hugging Face folder needs transformers; install it with: pip install transformers" in said


def test_no_transformers_for_the_demo(tmp_path: Path) -> None:
    said = one_line(ajour("demo", "--html", tmp_path / "x.html", stubs=without(tmp_path, "transformers")), 3)
    assert "is missing; install it with: pip install" in said


def test_a_package_that_a_factory_needs(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("import no_such_package_of_mine\ndef model(): ...")
    said = one_line(ajour("inspect", "mine:model", stubs=tmp_path), 3)
    assert "'mine:model' needs a package that is missing: No module named 'no_such_package_of_mine'; install it" in said


@pytest.mark.parametrize(
    ("text", "spec", "said", "line"),
    [
        (
            "def boom(): raise ValueError('no weights\\nat all')",
            "mine:boom",
            "mine:boom raised ValueError: no weights",
            1,
        ),
        ("def boom(): {}['x']", "mine:boom", "mine:boom raised KeyError: 'x'", 1),
        ("raise RuntimeError('too early')", "mine:boom", "mine raised RuntimeError: too early", 1),
        ("class Odd(Exception): ...\ndef boom(): raise Odd('mine')", "mine:boom", "mine:boom raised Odd: mine", 2),
        ("def boom(): exit(7)", "mine:boom", "mine:boom raised SystemExit: 7", 1),
    ],
)
def test_a_factory_that_raises(tmp_path: Path, text: str, spec: str, said: str, line: int) -> None:
    (tmp_path / "mine.py").write_text(text)
    place = f" ({tmp_path / 'mine.py'}, line {line})"
    assert one_line(ajour("plan", spec, stubs=tmp_path), 2) == f"error: {said}{place}\n"


def test_a_model_that_can_not_run() -> None:
    said = one_line(ajour("bench", "factories:failing"), 2)
    assert "the model does not take an input of shape 1x64: OwnError: not today (" in said


def test_a_plan_file_that_does_not_exist(tmp_path: Path) -> None:
    out, plan = tmp_path / "out.safetensors", tmp_path / "none.json"
    said = one_line(ajour("convert", "factories:pruned", "-o", out, "--plan", plan), 2)
    assert f"{plan} is no file; make a plan with: ajour plan MODEL -o FILE" in said


def test_a_package_that_a_factory_needs_when_it_runs(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def model(): import no_such_package_of_mine")
    assert "'mine:model' needs a package that is missing" in one_line(ajour("inspect", "mine:model", stubs=tmp_path), 3)


def test_an_unknown_model() -> None:
    assert "is no folder, no file and no `package.module:factory`" in one_line(ajour("bench", "nowhere"), 2)


def test_a_damaged_file(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"\xff" * 64)
    assert str(path) in one_line(ajour("plan", path, "--rows", "8"), 2)
