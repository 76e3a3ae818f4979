"""One of two processes that train the same model, each on its half of every batch: HOW RANK STORE RESULT."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from ajour.train import MaskedAdamW, MaskedLinear, MaskedSGD, Masks, clip_grad_norm_, mask_linears
from masked import small


def whole(parameter: Tensor) -> Tensor:
    """The parameter on every process."""
    return (parameter.full_tensor() if hasattr(parameter, "full_tensor") else parameter).detach()


def train(how: str, rank: int, kind: str, storage: str) -> list[Tensor]:
    """Four steps on halves of the batches; checks zeros and masks after each. SGD's layers are masked ones."""
    torch.manual_seed(5)
    model, masks = small()
    if kind == "sgd":
        mask_linears(model, masks)
    runs: nn.Module = DistributedDataParallel(model) if how == "ddp" else model
    if how == "fsdp2":
        fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    optimizer = {"adamw": MaskedAdamW, "sgd": MaskedSGD}[kind](
        model.named_parameters(), masks, lr=1e-2, storage=storage
    )
    for turn in range(4):
        optimizer.zero_grad()
        x = torch.randn(8, 37, generator=torch.Generator().manual_seed(turn))[4 * rank : 4 * rank + 4]
        runs(x).square().mean().backward()
        clip_grad_norm_(model.named_parameters(), masks, 0.1)
        optimizer.step()
        check_zeros(model, masks)
        for name, mask in masks.items():
            both = [torch.empty_like(mask.bits) for _ in range(2)]
            distributed.all_gather(both, mask.bits)
            assert torch.equal(*both), f"the masks of {name} differ"
    state = optimizer.state_dict()
    optimizer.load_state_dict(state)
    trained = [whole(p).clone() for p in model.parameters()]
    optimizer.zero_grad()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1.0)
    optimizer.step()  # without any gradient
    check_zeros(model, masks)
    return trained


def check_zeros(model: nn.Module, masks: Masks) -> None:
    """Where the masks are, and in the layers that have masks of their own."""
    for name, mask in masks.items():
        dropped = whole(model.get_parameter(name))[~mask.dense()]
        assert not dropped.view(torch.int32).any(), f"{name} must stay zero"
        layer = model.get_submodule(name.rpartition(".")[0])
        assert not isinstance(layer, MaskedLinear) or layer.mask == mask


if __name__ == "__main__":
    how, rank, store, result = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    cases = [(kind, storage) for kind in ("adamw", "sgd") for storage in ("dense", "compact")]
    found = {case: train(how, rank, *case) for case in cases}
    distributed.destroy_process_group()
    Path(result).write_bytes(pickle.dumps(found))
