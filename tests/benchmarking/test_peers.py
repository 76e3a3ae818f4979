"""Torch's own sparse tensors are timed and checked beside ours, and say why where they can't run."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from benchmarks import ops, peers
from benchmarks.cases import Case, smoke_cases
from suites import run_command, settings

from ajour.planning.timing import Side
from ajour.terms.pattern import NM, Block


@pytest.mark.parametrize("case", smoke_cases()[:2], ids=str)
def test_peers_are_checked_and_timed_in_the_same_run(clock: None, case: Case) -> None:
    found = [row for _, rows in ops.run(settings(cases=[case], rows=[3])) for row in rows if row["op"] == "peer"]
    kind = "bsr" if isinstance(case.pattern, Block) else "csr"
    assert [row["kernel"] for row in found] == [f"torch {kind}", f"torch {kind}, x transposed"]
    for row in found:
        assert (row["m"], row["dense_us"], row["sparse_us"], row["speedup"]) == (3, 100.0, 40.0, 2.5)
        assert 0 < row["error_ratio"] <= 1
        assert row["reason"] is None


def test_a_hopeless_peer_is_not_run_for_the_sake_of_a_median(monkeypatch: pytest.MonkeyPatch) -> None:
    turns: list[str] = []

    def clock(side: Side, first: int, count: int) -> float:
        turns.append(side.name)
        return 1000.0 if side.name == "torch bsr" else 100.0

    monkeypatch.setattr(ops.Settings, "timer", lambda self, mode: clock)
    found = [row for _, rows in ops.run(settings(rows=[3])) for row in rows if row["op"] == "peer"]
    assert [(row["kernel"], row["speedup"]) for row in found] == [("torch bsr", 0.1), ("torch bsr, x transposed", 1.0)]
    assert turns.count("torch bsr") == 2
    assert turns.count("torch bsr, x transposed") > 5


def test_a_peer_that_can_not_run_says_why(clock: None) -> None:
    asked = settings(dtypes=[torch.bfloat16], rows=[3])
    found = [row for _, rows in ops.run(asked) for row in rows if row["op"] == "peer"]
    assert found
    for row in found:
        assert "not implemented for 'BFloat16'" in row["reason"]
        assert row["sparse_us"] is row["speedup"] is row["error_ratio"] is None


def test_a_wrong_peer_says_so_and_is_no_failure_of_ours(clock: None, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = replace(peers.PEERS[2], run=lambda x, held, prepared: torch.zeros(x.shape[0], held.shape[0]))
    monkeypatch.setattr(peers, "PEERS", (wrong,))
    code, out = run_command("ops", "--smoke", "--dtypes", "float32", "--only", "block")
    assert code == 0
    assert "torch bsr: " in out
    found = [row for _, rows in ops.run(settings()) for row in rows if row["op"] == "peer"]
    assert all(row["speedup"] is None and row["reason"].startswith("its answer is wrong") for row in found)


def test_on_a_gpu_torch_s_own_sparse_tensors_are_the_peers() -> None:
    told = {str(p): [each.name for each in peers.peers_for(p, "cuda")] for p in (NM(2, 4), NM(1, 4), Block(64, 64))}
    assert told == {
        "2:4": ["torch semi-structured", "cuSPARSELt, searched"],
        "1:4": [],
        "block 64x64": ["torch bsr triton"],
    }


def test_a_searched_peer_pads_rows_and_uses_the_algorithm_found(monkeypatch: pytest.MonkeyPatch) -> None:
    w, x = torch.randn(8, 6), torch.randn(5, 6)
    used = []

    def multiply(held: torch.Tensor, xt: torch.Tensor, transpose_result: bool, alg_id: int) -> torch.Tensor:
        assert transpose_result
        assert xt.shape[1] % peers.SEMI_ROWS == 0
        used.append(alg_id)
        return (held @ xt).t()

    monkeypatch.setattr(torch, "_cslt_compress", lambda w: w)
    monkeypatch.setattr(torch, "_cslt_sparse_mm_search", lambda held, xt, transpose_result: 7)
    monkeypatch.setattr(torch, "_cslt_sparse_mm", multiply)
    peer = peers.PEERS[-1]
    held = peer.pack(w, NM(2, 4))
    torch.testing.assert_close(peer.run(x, held, peer.ready(x, held)), x @ w.t())
    assert used == [7]
