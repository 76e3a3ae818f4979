"""compressed-tensors: both bitmask formats, both layouts of keys, and what is refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from ajour.importers import find_weights, open_checkpoint
from ajour.importers.compressed_tensors import decompress
from ajour.terms.errors import FileError


def pack_bits(live: Tensor) -> Tensor:
    """Little bit order along each row, as numpy.packbits(axis=-1, bitorder="little") gives."""
    n, k = live.shape
    padded = torch.nn.functional.pad(live.to(torch.uint8), (0, -k % 8)).view(n, -1, 8)
    return (padded << torch.arange(8, dtype=torch.uint8)).sum(-1, dtype=torch.uint8)


def sparse_24(w: Tensor, prefix: str) -> dict[str, Tensor]:
    """As sparse-24-bitmask stores w: two places of every four, even where both hold zeros."""
    n, k = w.shape
    mask = torch.zeros(n, k // 4, 4, dtype=torch.bool)
    mask.scatter_(-1, w.abs().view(n, -1, 4).topk(2).indices, True)
    mask = mask.view(n, k)
    values = w[mask].view(n, k // 2)
    return {
        f"{prefix}.shape": torch.tensor([[n], [k]]),
        f"{prefix}.compressed": values,
        f"{prefix}.bitmask": pack_bits(mask),
    }


def sparse_any(w: Tensor, prefix: str) -> dict[str, Tensor]:
    """As sparse-bitmask stores w."""
    counts = (w != 0).sum(-1)
    return {
        f"{prefix}.shape": torch.tensor(w.shape),
        f"{prefix}.compressed": w[w != 0],
        f"{prefix}.bitmask": pack_bits(w != 0),
        f"{prefix}.row_offsets": counts.cumsum(0) - counts,
    }


def two_of_four(n: int, k: int, dtype: torch.dtype = torch.float32) -> Tensor:
    w = torch.randn(n, k // 4, 4)
    w.scatter_(-1, torch.rand(n, k // 4, 4).topk(2).indices, 0.0)
    return w.view(n, k).to(dtype)


def read(path: Path, tensors: dict[str, Tensor], config: object = None) -> dict[str, Tensor]:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path / "model.safetensors")
    if config is not None:
        (path / "config.json").write_text(json.dumps(config))
    return {weight.name: weight.read() for weight in find_weights(open_checkpoint(path))}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("prefix", ["model.fc", "model.fc.weight"])
def test_both_formats_and_both_layouts_give_the_weight_back(tmp_path: Path, dtype: torch.dtype, prefix: str) -> None:
    structured = two_of_four(24, 36, dtype)
    free = torch.where(torch.rand(20, 37) < 0.3, torch.randn(20, 37), torch.zeros(())).to(dtype)
    other = prefix.replace("fc", "out")
    tensors = sparse_24(structured, prefix) | sparse_any(free, other) | {"norm.weight": torch.randn(20)}
    found = read(tmp_path, tensors)
    assert set(found) == {"model.fc", "model.out"}
    assert torch.equal(found["model.fc"], structured)
    assert torch.equal(found["model.out"], free)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 20), st.integers(1, 40), st.floats(0, 1))
def test_any_shape_and_density(n: int, k: int, density: float) -> None:
    w = torch.where(torch.rand(n, k) < density, torch.randn(n, k), torch.zeros(()))
    tensors = sparse_any(w, "p")
    assert torch.equal(decompress(tensors, "p", {name.split(".")[1]: name for name in tensors}), w)


def config(**quantization: object) -> dict[str, object]:
    return {"quantization_config": {"quant_method": "compressed-tensors", **quantization}}


@pytest.mark.parametrize("form", ["sparse-24-bitmask", "sparse-bitmask", "dense"])
def test_a_sparse_only_config_is_read(tmp_path: Path, form: str) -> None:
    w = two_of_four(16, 16)
    assert torch.equal(read(tmp_path, sparse_24(w, "fc"), config(sparsity_config={"format": form}))["fc"], w)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (config(format="marlin-24"), "is a marlin-24 checkpoint"),
        ({"quantization_config": {"quant_method": "gptq", "checkpoint_format": "gptq_marlin_24"}}, "marlin-24"),
        (
            config(sparsity_config={"format": "sparse-24-bitmask"}, config_groups={"group_0": {}}),
            "is both sparse-24-bitmask and quantized, which is not supported",
        ),
        (
            config(sparsity_config={"format": "sparse-48"}),
            "of the sparsity format 'sparse-48'; the ones that can be read",
        ),
        ({"quantization_config": "fp8"}, "quantization_config is no object"),
    ],
)
def test_what_can_t_be_read_is_refused_by_name(tmp_path: Path, settings: object, message: str) -> None:
    with pytest.raises(FileError, match=message):
        read(tmp_path, sparse_24(two_of_four(16, 16), "fc"), settings)


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        ("shape", torch.tensor([16, 17]), "fc.bitmask: expected uint8"),
        ("shape", torch.tensor([16, 15]), "fc.bitmask: a bit is set beyond the 16x15 weight"),
        ("shape", torch.tensor([16, -1]), "fc.shape: expected two sizes"),
        ("shape", torch.tensor([2**40, 16]), "fc.shape: expected two sizes"),
        ("shape", torch.tensor([16.0, 16.0]), "fc.shape: expected two sizes"),
        ("compressed", torch.randn(3), "fc.compressed: expected .* values, found"),
        ("compressed", torch.zeros(256, dtype=torch.uint16), "expected floating-point values, found torch.uint16"),
        ("compressed", torch.randn(8, 16), "expected .* bits in every row|expected .* values"),
        ("bitmask", torch.zeros(16, 2, dtype=torch.int32), "fc.bitmask: expected uint8"),
        ("row_offsets", torch.zeros(16, dtype=torch.int64), "fc.row_offsets does not agree"),
        ("row_offsets", torch.zeros(3, dtype=torch.int64), "fc.row_offsets does not agree"),
    ],
)
def test_damaged_parts_are_named(tmp_path: Path, part: str, value: Tensor, message: str) -> None:
    tensors = sparse_any(torch.ones(16, 16), "fc")
    with pytest.raises(FileError, match=message):
        read(tmp_path, tensors | {f"fc.{part}": value})


def test_a_missing_part_is_named(tmp_path: Path) -> None:
    tensors = sparse_24(two_of_four(16, 16), "fc")
    del tensors["fc.bitmask"]
    with pytest.raises(FileError, match="layer 'fc': bitmask is missing"):
        read(tmp_path, tensors)
