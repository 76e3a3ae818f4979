"""What is mutated: small files of every kind that ajour reads, in memory; folders as {name: bytes}."""

from __future__ import annotations

import io
import json
import tempfile
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

import ajour

FIXTURES = Path(__file__).parent.parent / "fixtures"


@dataclass(frozen=True)
class Case:
    """files: of one checkpoint; use(path): what is done with it, path being the file, or the folder of several."""

    name: str
    files: dict[str, bytes]
    use: Callable[[Path], object]


class Net(nn.Module):
    """The base that masks and differences are for."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.bn, self.fc2 = nn.Linear(16, 24), nn.BatchNorm1d(24), nn.Linear(24, 16)


def _saved(value: object, **settings: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, **settings)
    return buffer.getvalue()


def _read(path: Path) -> object:
    return ajour.read(path, progress=False)


def _change(path: Path) -> object:
    return ajour.read(path, Net(), progress=False)


def _load(path: Path) -> object:
    return ajour.load(path, nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 16)))


def _half(n: int, k: int) -> Tensor:
    return torch.rand(n, k) < 0.5


def _converted() -> bytes:
    model = nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 16)).eval()
    ajour.prune(model[0], ajour.NM(2, 4))
    ajour.prune(model[2], ajour.Unstructured(), density=0.2)
    plan = ajour.plan(model, torch.randn(2, 16), margin=float("-inf"), progress=False)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        ajour.save(ajour.convert(model, plan), path)
        return path.read_bytes()


def _by_hand() -> dict[str, tuple[dict[str, bytes], Callable[[Path], object]]]:
    w, b = torch.randn(24, 16), torch.randn(24)
    bits = bytes(torch.randint(0, 256, (48,), dtype=torch.uint8).tolist())
    places = torch.randperm(24 * 16)[:20].sort().values.int()
    delta = {"base_model.model.fc1.sft_delta.values": torch.randn(20), "base_model.model.fc1.sft_delta.indices": places}
    index = {"weight_map": {"fc1.weight": "a.safetensors", "fc1.bias": "b.safetensors"}}
    sharded = {"a.safetensors": save({"fc1.weight": w}), "b.safetensors": save({"fc1.bias": b})}
    kept = OrderedDict({"bn": torch.rand(24) < 0.5})
    return {
        "asp": ({"x": save({"fc1.weight": w, "fc1.__weight_mma_mask": _half(24, 16)})}, _read),
        "maskllm": ({"x": _saved({"model": {"fc1.weight": w, "fc1.mask": _half(24, 16).float()}})}, _read),
        "openlth": ({"x": _saved({"model.fc1.weight": w, "mask_fc1___weight": _half(24, 16).float()})}, _read),
        "stray mask": ({"x": save({"fc1.weight": w, "fc1._weight_mask": _half(16, 24)})}, _read),
        "float masks": ({"x": save({"fc1.weight": _half(24, 16).float()})}, _change),
        "negative view": ({"x": _saved({"w": torch.complex(w, w).conj().imag})}, _read),
        "codes": ({"x": save({"fc1.weight": w.to(torch.int8), "fc1.weight_scale": b})}, _read),
        "mask.pth": ({"x": _saved({"fc1.weight": _half(24, 16).int()})}, _change),
        "mask_sparsity": ({"x": _saved(kept, _use_new_zipfile_serialization=False)}, _change),
        "r_amt": ({"x": _saved({"state_dict": {"fc1.mask_real": bits}, "epoch": 3, "val_result": None})}, _change),
        "peft_sft": ({"x": save(delta)}, _change),
        "sharded": (
            {**sharded, "model.safetensors.index.json": json.dumps(index).encode(), "config.json": b"{}"},
            _read,
        ),
        "ajour": ({"x": _converted()}, _load),
        "ajour dense": ({"x": _converted()}, _read),
    }


def corpus() -> list[Case]:
    """Every kind, each with what a user would do with it; the same ones in the same order in every run."""
    torch.manual_seed(0)
    cases = []
    for path in sorted(FIXTURES.iterdir()):
        if path.is_dir() and not path.name.startswith("_"):
            cases.append(Case(path.name, {file.name: file.read_bytes() for file in sorted(path.iterdir())}, _read))
        elif path.suffix in (".pt", ".pth", ".bin", ".safetensors") and "expected" not in path.name:
            use = _change_net if path.name == "pytorch_diff.bin" else _read
            cases.append(Case(path.name, {"x": path.read_bytes()}, use))
    cases += [Case(name, files, use) for name, (files, use) in _by_hand().items()]
    inspected = [Case(f"{case.name} inspected", case.files, _inspect) for case in cases[::3]]
    return cases + inspected


def _change_net(path: Path) -> object:
    model = nn.Module()
    model.fc1, model.fc2 = nn.Linear(16, 24), nn.Linear(24, 16)
    return ajour.read(path, model, progress=False)


def _inspect(path: Path) -> object:
    return str(ajour.inspect(path))
