"""DDP and FSDP2 walk a trainable layer's parameters, indices too; one process shows it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from ajour.nn import SparseLinear, linear_of
from ajour.terms.pattern import NM, Block, Pattern, Unstructured
from pruned import keep_mask, matrix_of

each_pattern = pytest.mark.parametrize("pattern", [NM(2, 4), Block(4, 4), Unstructured()], ids=str)


@pytest.fixture(autouse=True)
def group(tmp_path: Path) -> Iterator[None]:
    if not distributed.is_available():
        pytest.skip("this torch was built without torch.distributed")
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def layer(pattern: Pattern) -> SparseLinear:
    w = torch.where(keep_mask(pattern, 24, 32), torch.randn(24, 32), 0.0)
    return linear_of(matrix_of(w, pattern), torch.randn(24), trainable=True)


@each_pattern
def test_ddp_trains_the_values(pattern: Pattern) -> None:
    module = layer(pattern)
    x = torch.randn(5, 32)
    wanted = module(x)
    parallel = DistributedDataParallel(nn.Sequential(module))
    y = parallel(x)
    assert torch.equal(y, wanted)
    y.sum().backward()
    assert [p.grad is not None for p in parallel.parameters()] == [p.requires_grad for p in module.parameters()]


@pytest.mark.unpoisoned
@pytest.mark.skipif(torch.__version__ < (2, 13), reason="this torch's fully_shard takes no integer parameters")
@each_pattern
def test_fsdp2_shards_values_and_indices(pattern: Pattern) -> None:
    model = nn.Sequential(layer(pattern))
    x = torch.randn(5, 32)
    wanted = model(x)
    fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
    y = model(x)
    assert torch.equal(y, wanted)
    y.sum().backward()
    assert all(isinstance(p, DTensor) for p in model.parameters())
    assert model.get_parameter(f"0.{model[0].op.matrix.NAMES[0]}").grad is not None


@pytest.mark.unpoisoned
@each_pattern
def test_fsdp2_of_any_torch_shards_the_values_alone(pattern: Pattern) -> None:
    model = nn.Sequential(layer(pattern))
    x = torch.randn(5, 32)
    wanted = model(x)
    indices = {p for p in model.parameters() if not p.is_floating_point()}
    fully_shard(model, mesh=init_device_mesh("cpu", (1,)), ignored_params=indices)
    y = model(x)
    assert torch.equal(y, wanted)
    y.sum().backward()
    assert all(isinstance(p, DTensor) == p.is_floating_point() for p in model.parameters())
    assert model.get_parameter(f"0.{model[0].op.matrix.NAMES[0]}").grad is not None
