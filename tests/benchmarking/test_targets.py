"""Targets are data; what rows say to them is met, missed or not measured, never guessed."""

from __future__ import annotations

import pytest
from benchmarks.cases import cases
from benchmarks.targets import judge, load
from goals import target

from result_rows import row


def test_every_target_is_whole_and_named_once() -> None:
    targets = load()
    names = [(each.device, each.name) for each in targets]
    assert len(set(names)) == len(names)
    for each in targets:
        better = each.ambition <= each.floor if each.lower else each.ambition >= each.floor
        assert better, f"{each.name}: the ambition is below the floor"
        assert each.suite in ("ops", "models", "train")
        assert each.device in ("cpu", "sm_90")
        assert each.cells > 0


@pytest.mark.parametrize("device", ["cpu", "sm_90"])
def test_every_random_or_skewed_layer_that_a_target_names_is_a_case(device: str) -> None:
    held = {
        (str(each.pattern), each.density, each.mask): each.rows
        for each in cases("cuda" if device == "sm_90" else "cpu")
    }
    for each in load():
        where = each.where
        if each.suite != "ops" or each.device != device or not {"pattern", "density", "mask", "m"} <= set(where):
            continue
        densities = where["density"] if isinstance(where["density"], list) else [where["density"]]
        wanted = set(where["m"] if isinstance(where["m"], list) else [where["m"]])
        for density in densities:
            assert wanted <= set(held[where["pattern"], density, where["mask"]]), each.name


def test_a_target_is_met_missed_or_not_measured() -> None:
    assert judge(target(), [row()]).status == "met"
    assert judge(target(), [row(speedup=1.5)]).status == "missed"
    assert judge(target(), [row(speedup=1.5)]).distance == pytest.approx(0.25)
    assert judge(target(), []).status == "not measured"
    assert judge(target(where={"dtype": "bfloat16"}), [row()]).status == "not measured"
    partly = judge(target(cells=2), [row()])
    assert (partly.status, partly.cells, partly.value) == ("not measured", 1, 2.0)


def test_ambition_is_more_than_met() -> None:
    assert not judge(target(), [row()]).ambitious
    assert judge(target(), [row(speedup=4.0)]).ambitious


def test_a_cell_counts_with_its_best_kernel_and_a_wrong_one_as_nothing() -> None:
    rows = [row(kernel="slow", speedup=1.0), row(speedup=9.0), row(shape="b", speedup=4.0)]
    assert judge(target(), rows).value == pytest.approx(6.0)
    wrong = row(shape="c", speedup=None, error_ratio=3.0)
    verdict = judge(target(aggregate="min"), [*rows, wrong])
    assert (verdict.status, verdict.value) == ("missed", 0.0)
    assert verdict.worst.startswith("c float32 128 rows")


def test_wrong_kernels_do_not_pass_where_lower_is_better() -> None:
    asked = target(metric="pack_us", lower=True, every=True, floor=10.0, ambition=5.0, aggregate="max")
    assert judge(asked, [row(pack_us=9.0)]).status == "met"
    assert judge(asked, [row(pack_us=11.0)]).status == "missed"
    assert judge(asked, [row(pack_us=9.0), row(pack_us=11.0, kernel="other")]).status == "missed"
    assert judge(asked, [row(pack_us=9.0, error_ratio=2.0)]).status == "missed"


def test_filters_take_values_lists_and_ranges() -> None:
    rows = [row(m=m, shape=str(m)) for m in (1, 64, 128, 512)]
    assert judge(target(where={"m": [128, 512]}), rows).cells == 2
    assert judge(target(where={"m": {"min": 64}}), rows).cells == 3
    assert judge(target(where={"dense_mb": {"min": 60, "max": 70}}), rows).cells == 4
    assert judge(target(where={"dense_mb": {"min": 68}}), rows).cells == 0
    assert judge(target(where={"product": "dw"}), [*rows, row(product="dw")]).cells == 1
    assert judge(target(where={"product": "y"}), rows).cells == 4


def test_gains_are_over_what_the_metric_names() -> None:
    peer = row(op="peer", kernel="torch bsr", speedup=0.5)
    rows = [row(), peer, row(op="peer", kernel="torch bsr", speedup=4.0, m=1)]
    assert judge(target(metric="over today"), rows).value == pytest.approx(4.0)
    assert judge(target(metric="over control"), rows).value == pytest.approx(1.8)
    assert judge(target(metric="over torch bsr"), rows).value == pytest.approx(4.0)
    assert judge(target(metric="over nobody"), rows).status == "not measured"
    assert judge(target(metric="call_us", lower=True, aggregate="max"), rows).value == pytest.approx(-150.0)
    assert judge(target(metric="gain_times_density"), rows).value == pytest.approx(0.2)
    both = [row(), row(threads=2, sparse_us=28.0)]
    assert judge(target(metric="scaling", where={"threads": 2}), both).value == pytest.approx(50 / 28)
