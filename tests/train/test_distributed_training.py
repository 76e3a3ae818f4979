"""DDP and FSDP2 on two processes keep masks identical and zeros exact, and train as one process does."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import distributed

from ajour.train import MaskedAdamW, MaskedSGD, clip_grad_norm_
from masked import small

WORKER = Path(__file__).with_name("two_processes.py")


@pytest.mark.parametrize("how", ["ddp", "fsdp2"])
def test_two_processes_train_as_one(how: str, tmp_path: Path) -> None:
    if not distributed.is_available():
        pytest.skip("this torch was built without torch.distributed")
    paths = [tmp_path / f"{rank}.pickle" for rank in range(2)]
    workers = [
        subprocess.Popen([sys.executable, WORKER, how, str(rank), str(tmp_path / "store"), str(path)])
        for rank, path in enumerate(paths)
    ]
    assert [worker.wait(timeout=120) for worker in workers] == [0, 0]
    found = [pickle.loads(path.read_bytes()) for path in paths]
    assert found[0].keys() == found[1].keys()
    for case, weights in found[0].items():
        for mine, theirs in zip(weights, found[1][case], strict=True):
            assert torch.equal(mine, theirs), f"{case}: the processes differ"
        for mine, alone in zip(weights, trained_alone(*case), strict=True):
            torch.testing.assert_close(mine, alone, rtol=1e-4, atol=1e-5)


def trained_alone(kind: str, storage: str) -> list[torch.Tensor]:
    torch.manual_seed(5)
    model, masks = small()
    optimizer = {"adamw": MaskedAdamW, "sgd": MaskedSGD}[kind](
        model.named_parameters(), masks, lr=1e-2, storage=storage
    )
    for turn in range(4):
        optimizer.zero_grad()
        generator = torch.Generator().manual_seed(turn)
        model(torch.randn(8, 37, generator=generator)).square().mean().backward()
        clip_grad_norm_(model.named_parameters(), masks, 0.1)
        optimizer.step()
    return [p.detach() for p in model.parameters()]
