"""Self-tests of the kernels that take an optimizer's masked step."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ajour.diagnosis.findings import Finding
from ajour.diagnosis.self_test import Case, self_test
from ajour.ops.masked_update import reference
from ajour.ops.masked_update.op import MASKED_ADAMW, MASKED_SGD
from ajour.ops.masked_update.update import STATES, Slice, Update, UpdateKernel, chunk_offsets
from ajour.train import Mask

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SIZES = (6001, 130)  # of the parameters of an update: more than one chunk of work, and less
RULES = {  # the optimizers' coefficients, by the columns of ADAMW and SGD
    "adamw": (1.0, 0.99, 0.1, 0.95, 0.05, 2.3, 1e-8, 3e-2, 3.0),
    "momentum": (1.0, 0.02, 0.9, 0.7, 0.0, 0.0, 0.0, 1e-1, 2.0),
}


def check_updates(device: str) -> Iterator[Finding]:
    """Every kernel of every optimizer's step on a device, "cpu" or "cuda"."""
    for op, rule in ((MASKED_ADAMW, "adamw"), (MASKED_SGD, "momentum")):
        for kernel in op.kernels.values():
            if kernel.run is not reference.run:  # what the others are held against
                yield self_test(f"{op.name} · {kernel.name} ({device})", _updates(kernel, rule, device))


def _updates(kernel: UpdateKernel, rule: str, device: str) -> Iterator[Case]:
    """A masked step against the reference's, which is in float64: within a few roundings of what is stored."""
    for dtype in DTYPES:
        for compact in (False, True):

            def measure(dtype: torch.dtype = dtype, compact: bool = compact) -> float:
                found, wanted = _update(rule, dtype, compact, device), _update(rule, dtype, compact, "cpu")
                kernel.run(found)
                reference.run(wanted)
                pairs = zip(found.slices, wanted.slices, strict=True)
                return max(max(_apart(a.weight, b.weight), *map(_apart, a.states, b.states)) for a, b in pairs)

            yield f"{str(dtype)[6:]}, compact: {compact}", kernel.why_not(device, dtype), measure


def _update(rule: str, dtype: torch.dtype, compact: bool, device: str) -> Update:
    """The same one at every call, on tensors of its own."""
    generator = torch.Generator().manual_seed(0)
    slices, grads = [], []
    for size in SIZES:
        kept = torch.rand(size, generator=generator) < 0.3
        bits = Mask.from_dense(kept).bits
        w, g = (torch.randn(size, generator=generator).mul(kept).to(dtype) for _ in range(2))
        whole = [torch.rand(size, generator=generator).mul(kept) for _ in STATES[rule]]
        states = tuple((state[kept] if compact else state).to(device) for state in whole)
        offsets = chunk_offsets(bits).to(device) if compact else None
        slices.append(Slice(w.to(device), bits.to(device), offsets, states, None))
        grads.append(g.to(device))
    return Update(rule, slices, grads, torch.tensor([RULES[rule]] * len(slices), dtype=torch.float64))


def _apart(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """The largest difference over the allowed one; NaN where either is."""
    allowed = max(torch.finfo(wanted.dtype).eps, 3e-6) * wanted.double().abs() + 3e-7
    return float(((found.cpu().double() - wanted.double()).abs() / allowed).max())
