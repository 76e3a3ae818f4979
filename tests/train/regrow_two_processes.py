"""One of two processes that train under DDP while masks move, each on its own batches: RANK STORE."""

from __future__ import annotations

import os
import sys

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from ajour import train
from ajour.terms.pattern import Unstructured


def run(rank: int, method: str, storage: str) -> None:
    """Twelve steps, three changes; asserts after each that masks agree and zeros are exact."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(24, 32), nn.Tanh(), nn.Linear(32, 4))
    masks = train.Masks.from_pattern(model, Unstructured(), 0.3)
    optimizer = train.MaskedAdamW(model.parameters(), masks, lr=1e-2, storage=storage)
    regrow = train.Regrow(optimizer, until=100, every=3, method=method)  # type: ignore[arg-type]
    parallel, first = DistributedDataParallel(model), dict(masks)
    for step in range(12):
        optimizer.zero_grad()
        x = torch.randn(8, 24, generator=torch.Generator().manual_seed(100 * step + rank))
        parallel(x).square().sum().backward()
        if regrow.step() is None:
            optimizer.step()
        for name, mask in masks.items():
            both = [torch.empty_like(mask.bits) for _ in range(2)]
            distributed.all_gather(both, mask.bits)
            assert torch.equal(*both), f"the masks of {name} differ"
            assert not model.get_parameter(name).detach()[~mask.dense()].view(torch.int32).any(), name
    assert all(first[name] != mask for name, mask in masks.items()), "nothing moved"


if __name__ == "__main__":
    torch.set_num_threads(1)
    rank = int(sys.argv[1])
    distributed.init_process_group("gloo", init_method=f"file://{sys.argv[2]}", rank=rank, world_size=2)
    for method in ("rigl", "set"):
        for storage in ("dense", "compact"):
            run(rank, method, storage)
    distributed.destroy_process_group()
    os._exit(0)  # all has been asserted; threads of gloo now and then abort a process that ends by itself (torch 2.13)
