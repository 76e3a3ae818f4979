"""The page: one file, no network, no script, every layer named, and readable in light and dark."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from ajour.comparison import Comparison
from ajour.comparison.charts import SERIES, bars, stacks
from ajour.comparison.document import CSS
from ajour.comparison.page import page, write_page
from ajour.planning.plan import Choice
from ajour.planning.timing import Timing
from ajour.terms.pattern import Dense

VOID = {"meta", "br", "hr", "img", "use", "path", "input", "link"}


class Strict(HTMLParser):
    """Every element that opens closes, in order; ids, attributes and text are kept."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.seen: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        self.ids += [value or "" for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open, f"</{tag}> closes nothing"
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def parsed(text: str) -> Strict:
    parser = Strict()
    parser.feed(text)
    parser.close()
    assert not parser.open, parser.open
    return parser


@pytest.fixture(scope="module")
def text(compared: Comparison) -> str:
    return page("A title", "An intro", [compared, replace(compared, name="the other")])


def test_every_element_closes_and_no_id_stands_twice(text: str) -> None:
    found = parsed(text)
    assert {"html", "title", "svg", "table", "figure"} <= set(found.seen)
    assert len(found.ids) == len(set(found.ids))


def test_nothing_is_loaded_and_nothing_runs(text: str) -> None:
    found = parsed(text)
    assert not {"script", "link", "img", "iframe", "object"} & set(found.seen)
    assert not re.search(r"https?:|//[a-z]|@import|data:", text)
    assert all(value.startswith("#") for name, value in found.attributes if name in ("src", "href", "xlink:href"))
    assert all(target.startswith("#") for target in re.findall(r"url\(\s*['\"]?([^)]*)", text))


def test_every_reference_has_its_target(text: str) -> None:
    found = parsed(text)
    wanted = [value[1:] for name, value in found.attributes if name == "href"] + re.findall(r"url\(#([^)]+)\)", text)
    assert wanted
    assert set(wanted) <= set(found.ids)


def test_every_layer_size_side_and_result_is_on_it(compared: Comparison, text: str) -> None:
    words = "\n".join(parsed(text).text)
    for choice in compared.plan.choices:
        assert re.search(rf"^{re.escape(choice.layer)}$", words, re.MULTILINE)
    for said in ("4x64", "32x64", "torch as it is", "best dense kernels", "converted", "the other", "verified", "kB"):
        assert said in words


def test_what_a_model_is_called_can_not_break_the_page(compared: Comparison) -> None:
    nasty = '<script>alert("x")</script>'
    made = page(nasty, nasty, [replace(compared, name=nasty, notes=(nasty,))])
    assert "script" not in parsed(made).seen


def test_a_failed_verification_is_on_the_page(compared: Comparison) -> None:
    failed = replace(compared, report=replace(compared.report, failures=("outputs: wrong",)))
    words = " ".join(parsed(page("", "", [failed])).text)
    assert "NOT VERIFIED" in words
    assert "not verified" in words


def test_colours_are_the_pages_own_in_light_and_in_dark() -> None:
    css = CSS.read_text()
    light, dark = css.split("prefers-color-scheme: dark")
    names = {"--ink", "--line", *(f"--{name}" for name in SERIES)}
    assert names <= set(re.findall(r"(--\w+):", light))
    assert names <= set(re.findall(r"(--\w+):", dark))
    drawn = bars([("one", "stock", Timing(2, 1, 3)), ("two", "converted", Timing(1, 1, 1))], "ms")
    drawn += stacks([("one", {"x": 1.0, "y": 2.0})], {"x": "a", "y": "rest"}, "ms")
    colours = {value for value in re.findall(r"(?:fill|stroke): ([^;\"]+)", drawn) if value != "none"}
    assert all(value.startswith("var(--") for value in colours), colours


def test_a_phone_knows_the_name_of_every_cell(text: str) -> None:
    heads = [re.findall(r"<th[^>]*>(.*?)</th>", table) for table in re.findall(r"<thead>(.*?)</thead>", text)]
    bodies = re.findall(r"<tbody>(.*?)</tbody>", text, re.DOTALL)
    assert len(heads) == len(bodies) == 4
    for head, body in zip(heads, bodies, strict=True):
        for row in re.findall(r"<tr>(.*?)</tr>", body, re.DOTALL):
            assert re.findall(r'<td data-name="([^"]*)"', row) == head
    narrow = CSS.read_text().split("max-width: 40rem")[1]
    assert "attr(data-name)" in narrow
    assert "thead { display: none; }" in narrow


def test_the_legend_names_only_what_takes_time(compared: Comparison, text: str) -> None:
    def legend(made: str) -> list[str]:
        (items,) = re.findall(r'<ul class="legend">(.*?)</ul>', made)
        return re.findall(r"</i>(.*?)</li>", items)

    assert legend(page("", "", [compared])) == ["*", "everything else"]
    idle = {
        side: replace(each, layers=dict.fromkeys(each.layers, 0.0)) for side, each in compared.sizes[0].where.items()
    }
    asleep = replace(compared, sizes=tuple(replace(size, where=idle) for size in compared.sizes))
    assert legend(page("", "", [asleep])) == ["everything else"]


def test_a_model_without_zeros_is_told_so(compared: Comparison) -> None:
    choices = tuple(Choice(c.layer, c.shape, c.dtype, Dense(), 1.0) for c in compared.plan.choices)
    full = replace(compared, plan=replace(compared.plan, choices=choices), report=replace(compared.report, layers=()))
    words = " ".join(parsed(page("", "", [full])).text)
    assert "Nothing to gain yet: 2 linear layers without a single zero." in words
    assert "no layer was converted" in words
    assert "Nothing to gain yet" in str(full)


def test_tables_scroll_in_their_own_box(text: str) -> None:
    assert text.count("<table") == text.count('<div class="scroll"><table')
    assert "overflow-x: auto" in text
    assert 'name="viewport"' in text


def test_write_page_writes_it(compared: Comparison, tmp_path: Path) -> None:
    write_page(tmp_path / "page.html", "A title", "", [compared])
    assert (tmp_path / "page.html").read_text().startswith("<!doctype html>")
