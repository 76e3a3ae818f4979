"""`python -m benchmarks.reading`: how much memory reading a sharded checkpoint takes, beside its result and a shard.

Writes checkpoints of its own (2 GB in 8 shards: plain zeros, weights with masks, packed 2:4 weights, torch files),
reads each in a fresh process, and compares the peak of resident memory with what is promised: the result and a shard.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from rich.console import Console
from safetensors.torch import save_file
from torch import Tensor

SIDE = 4096
KINDS = ("plain", "masked", "packed", "torch")
SLACK = 64 * 2**20  # bytes: of allocators, and of one tensor's mask while it is applied


def write(folder: Path, kind: str, total: int, shards: int) -> None:
    """Float16 weights of 4096 x 4096 in files of equal size."""
    generator = torch.Generator().manual_seed(0)
    each = SIDE * SIDE * {"masked": 3, "packed": 1.125}.get(kind, 2)
    count, places, held = max(shards, round(total / each)), {}, {}
    for layer in range(count):
        shard = layer * shards // count
        tensors = _layer(f"layers.{layer}.fc", kind, generator)
        held.update(tensors)
        suffix = "bin" if kind == "torch" else "safetensors"
        name = f"model-{shard}.{suffix}"
        places.update(dict.fromkeys(tensors, name))
        if (layer + 1) * shards // count != shard:
            torch.save(held, folder / name) if kind == "torch" else save_file(held, folder / name)
            held = {}
    index = "pytorch_model.bin.index.json" if kind == "torch" else "model.safetensors.index.json"
    (folder / index).write_text(json.dumps({"weight_map": places}))


def _layer(name: str, kind: str, generator: torch.Generator) -> dict[str, Tensor]:
    w = torch.randn(SIDE, SIDE, generator=generator).half()
    kept = (torch.arange(SIDE) % 4 < 2).expand(SIDE, SIDE)
    if kind == "masked":
        return {f"{name}.weight": w, f"{name}._weight_mask": kept.clone()}
    if kind == "packed":
        bits = torch.full((SIDE, SIDE // 8), 0b00110011, dtype=torch.uint8)
        shape = torch.tensor([[SIDE], [SIDE]])
        return {f"{name}.compressed": w[kept].view(SIDE, -1), f"{name}.bitmask": bits, f"{name}.shape": shape}
    return {f"{name}.weight": w * kept}


def read(folder: Path) -> dict[str, float]:
    """Bytes of the result, and by how much the peak of resident memory grew."""
    import ajour

    before = _peak()
    start = time.perf_counter()
    state = ajour.read(folder)
    seconds = time.perf_counter() - start
    result = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    zeros = all(bool((w[:64, 2::4] == 0).all()) for w in state.values())
    return {"result": result, "grown": _peak() - before, "seconds": seconds, "exact": zeros}


def _peak() -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def main() -> int:
    """The exit status: 1 if more memory was taken than promised."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reading", description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--shards", type=int, default=8)
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--read", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    console = Console(width=120)
    if asked.read:
        console.print(json.dumps(read(asked.read)), soft_wrap=True)
        return 0
    failed = 0
    for kind in asked.kinds.split(","):
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder), kind, int(asked.gigabytes * 1e9), asked.shards)
            files = [file.stat().st_size for file in Path(folder).iterdir()]
            command = [sys.executable, "-m", "benchmarks.reading", "--read", folder]
            found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        allowed = found["result"] + max(files) + SLACK
        fits = found["grown"] <= allowed and found["exact"]
        failed += not fits
        console.print(
            f"{kind:6} {sum(files) / 1e9:.2f} GB in {asked.shards} shards, largest {max(files) / 1e6:.0f} MB: "
            f"result {found['result'] / 1e9:.2f} GB, peak {found['grown'] / 1e9:.2f} GB more than before, "
            f"allowed {allowed / 1e9:.2f} GB, {found['seconds']:.1f} s: {'kept' if fits else 'BROKEN'}"
        )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
