"""The README's code does what it says, and its tables say what the result files say."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks.check import rows_of
from benchmarks.readme import BEGIN, DENSE, END, README, UNMEASURED, tables, updated
from benchmarks.results import ROOT, committed

import ajour
from factories import pruned
from result_rows import result, row, save

NOT_DENSE = ("sparse_us", "converted_us", "converted_compiled_us")
BLOCK = re.compile(r"^(<!-- not run by the tests: .*? -->\n)?```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)
BLOCKS = [(bool(skipped), code) for skipped, code in BLOCK.findall(README.read_text(encoding="utf-8"))]


def test_the_first_code_of_the_readme_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    skipped, code = BLOCKS[0]
    assert not skipped
    monkeypatch.chdir(tmp_path)
    example = torch.randn(8, 64)
    expected = pruned()(example)
    names: dict[str, object] = {"model": pruned().eval(), "example": example}
    exec(compile(code, str(README), "exec"), names)
    assert "2 layers: 2 with zeros" in capsys.readouterr().out
    model, plan = names["model"], names["plan"]
    assert isinstance(model, torch.nn.Module)
    assert isinstance(plan, ajour.Plan)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
    loaded = ajour.load("model.safetensors", pruned())
    assert torch.equal(loaded(example), model(example))
    torch.testing.assert_close(loaded(example), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("skipped", "code"), BLOCKS[1:])
def test_the_ways_to_come_from_elsewhere_run(skipped: bool, code: str) -> None:
    compiled = compile(code, str(README), "exec")
    if skipped:
        return
    example = torch.randn(8, 64)
    names: dict[str, Any] = {"model": pruned().eval(), "example": example, "torch": torch, "ajour": ajour}
    exec(compiled, names)
    assert names["model"](example).isfinite().all()
    assert ajour.inspect(names["model"]).layers[0].density <= 0.5


def test_only_code_that_can_not_run_here_is_skipped() -> None:
    assert [skipped for skipped, _ in BLOCKS].count(True) == 3
    for skipped, code in BLOCKS:
        needs_more = any(name in code for name in ("torchao", "to_sparse_semi_structured", "from_pretrained"))
        assert skipped == needs_more, code


def test_the_tables_are_fresh() -> None:
    text = README.read_text(encoding="utf-8")
    assert updated(text) == text, "the README's tables are stale: run make readme"


def test_pages_that_the_readme_links_exist() -> None:
    for page in re.findall(r"\]\(([^)#]+)\)", README.read_text(encoding="utf-8")):
        assert (README.parent / page).is_file(), page


def _saved(folder: Path, rows: list[dict[str, Any]], suite: str = "ops") -> Path:
    return save(folder, "here", f"{suite}.json", result(rows, cpu="A CPU (avx2)", torch="2.13.0"))


def test_a_changed_result_file_makes_the_readme_stale(tmp_path: Path) -> None:
    text = f"before\n{BEGIN}\nold\n{END}\nafter\n"
    first = updated(text, _saved(tmp_path, [row(speedup=2.0)]))
    assert first.startswith("before\n")
    assert first.endswith("after\n")
    assert "2.00x (2.00x)" in first
    assert updated(first, tmp_path) == first
    assert "3.00x (3.00x)" in updated(first, _saved(tmp_path, [row(speedup=3.0)]))


def test_tables_show_what_does_not_help_and_what_is_wrong(tmp_path: Path) -> None:
    rows = [
        row(speedup=0.5),
        row(shape="b", speedup=2.0, kernel="slow"),
        row(shape="b", speedup=8.0),
        row(m=512, speedup=None, error_ratio=2.0),
        row(op="peer", kernel="torch bsr", speedup=0.25),
        row(threads=2, speedup=99.0),
        row(shape="tiny", speedup=98.0),
        row(product="dw", speedup=97.0),
    ]
    text = tables(_saved(tmp_path, rows))
    assert "### A CPU (avx2), torch 2.13.0" in text
    assert "measured 2026-01-01 at commit 0000000)" in text
    assert "| block 32x32, 90% zeros | 2.00x (0.50x) | wrong |" in text
    assert f"| *the same in torch's own BSR* | 0.25x (0.25x)* | {UNMEASURED} |" in text
    assert f"{UNMEASURED} is not measured" in text
    assert not any(f"{figure}.00x" in text for figure in (97, 98, 99))


def test_models_stand_beside_their_best_dense(tmp_path: Path) -> None:
    figures = {"model": "M", "batch": 1, "tokens": 16, "stock_us": 2000.0, "dense_us": 1500.0, "sparse_us": 500.0}
    rows = [
        row(**figures, speedup=3.0, no_difference=same, pattern=pattern)
        for same, pattern in ((False, "block 32x32"), (True, "unstructured"))
    ]
    text = tables(_saved(tmp_path, rows, "models"))
    assert "| M | block 32x32, 90% | 1x16 | float32 | 2 | 1.5 | 0.5 | 3.00x |" in text
    assert "| M | unstructured, 90% | 1x16 | float32 | 2 | 1.5 | 0.5 | 3.00x (no difference) |" in text


@pytest.mark.parametrize("faster", ["stock_us", "compiled_us", "best_dense_kernels_us", "dense_us"])
def test_a_model_s_gain_is_over_the_fastest_dense_side_of_its_row(tmp_path: Path, faster: str) -> None:
    sides = {**dict.fromkeys(DENSE, 3000.0), "sparse_us": 500.0, faster: 1000.0}
    held = row(model="M", batch=1, tokens=16, **sides, speedup=6.0, no_difference=False)
    text = tables(_saved(tmp_path, [held], "models"))
    assert "| 1 | 0.5 | 2.00x" in text
    assert "6.00x" not in text


def test_no_committed_model_shows_more_than_its_fastest_dense_side_allows(tmp_path: Path) -> None:
    shown = 0
    for suites in committed(ROOT / "results").values():
        for each in rows_of(suites.get("models", [])):
            if each["speedup"] is None:
                continue
            text = tables(_saved(tmp_path, [each], "models"))
            gain = re.search(r"([\d.]+)x(?: \(no difference\))? \|$", text, re.MULTILINE)
            if gain is None:  # another mode, or more threads
                continue
            shown += 1
            sides = [value for name, value in each.items() if name.endswith("_us") and name not in NOT_DENSE]
            assert float(gain[1]) <= min(sides) / each["sparse_us"] + 0.005, each
    assert shown >= 10


def test_optimizers_stand_beside_torch_s(tmp_path: Path) -> None:
    step = row(op="masked_adamw", config="compact", shape="84 tensors")
    text = tables(_saved(tmp_path, [step], "train"))
    assert "| masked_adamw, moments for kept weights | block 32x32, 90% | float32 | 0.1 | 0.05 | 2.00x |" in text


def test_a_gpu_is_named_with_its_power_and_shown_by_replayed_graphs(tmp_path: Path) -> None:
    rows = [row(mode="graph", threads=16, speedup=2.0), row(mode="eager", threads=16, speedup=1.5)]
    facts = {"name": "A GPU", "sm": "sm_90", "power_limit": "700.00 W", "driver": "580", "torch": "2.11.0"}
    text = tables(save(tmp_path, "there", "ops-decode.json", result(rows, **facts, triton="3.6.0")))
    assert "### A GPU, torch 2.11.0, sm_90, 700.00 W, driver 580, Triton 3.6.0" in text
    assert "2.00x (2.00x)" in text
    assert "1.50x" not in text
    assert "replayed CUDA graphs" in text
    assert "Not measured on a GPU" not in text
