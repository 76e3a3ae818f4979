"""What the documentation shows is so: its examples run, its excerpts stand in the tree, its commands exist."""

from __future__ import annotations

import doctest
import re
import shlex
from pathlib import Path

import pytest
from benchmarks.__main__ import _parser

from ajour.ops import LINEAR_OPS

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted((ROOT / "docs").glob("*.md"))
FENCE = re.compile(r"^(?:<!-- from (\S+) -->\n)?```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def _blocks(page: Path, kind: str) -> list[tuple[str, str]]:
    found = FENCE.findall(page.read_text(encoding="utf-8"))
    return [(source, text) for source, language, text in found if language == kind]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_examples_show_what_they_give(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = "\n".join(text for _, text in _blocks(page, "pycon"))
    assert text, f"{page.name} shows nothing that runs"
    test = doctest.DocTestParser().get_doctest(text, {}, page.name, str(page), 0)
    said: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    runner.run(test, out=said.append)
    assert test.examples
    assert runner.summarize(verbose=False).failed == 0, "".join(said)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_excerpts_stand_in_the_file_that_they_name(page: Path) -> None:
    for kind in ("python", "cpp"):
        for source, text in _blocks(page, kind):
            assert source, f"{page.name}: an excerpt that names no file"
            assert text in (ROOT / source).read_text(encoding="utf-8"), f"{page.name}: {source} has changed"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_exist(page: Path) -> None:
    for _, text in _blocks(page, "sh"):
        for line in text.splitlines():
            words = shlex.split(line)
            assert words[:3] == ["python", "-m", "benchmarks"], line
            _parser().parse_args(words[3:])
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for target in re.findall(r"`make ([a-z]+)", page.read_text(encoding="utf-8")):
        assert target in targets, f"{page.name}: make {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_pages_link_to_pages_that_exist(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / link).is_file(), f"{page.name}: {link}"


def test_every_kernel_is_described() -> None:
    page = (ROOT / "docs" / "kernels.md").read_text(encoding="utf-8")
    for op in LINEAR_OPS.values():
        for name in op.kernels:
            assert f"`{name}`" in page, f"docs/kernels.md does not say what {name} of {op.name} does"


def test_what_formats_say_of_their_tensors_names_them_all() -> None:
    from ajour.formats import BitmapMatrix, BlockMatrix, NMMatrix, ScaledNMMatrix, SplitMatrix

    page = (ROOT / "docs" / "formats.md").read_text(encoding="utf-8")
    for matrix in (NMMatrix, BlockMatrix, BitmapMatrix, ScaledNMMatrix, SplitMatrix):
        assert all(name in page for name in matrix.NAMES), matrix
