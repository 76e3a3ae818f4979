"""verify: whether a converted model computes what its dense reference does, through its ops, and what it holds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ajour.conversion.fast_path import notes
from ajour.conversion.recorded import plan_of
from ajour.layers import find_layers
from ajour.memory import resident_bytes
from ajour.nn import SparseLinear
from ajour.planning.rows import untouched
from ajour.verification.outputs import compare, run, run_on_onednn, run_reference
from ajour.verification.report import LayerReport, Report
from ajour.verification.watch import ON_ONEDNN, Watch


def verify(model: nn.Module, reference: nn.Module, example: Any) -> Report:
    """Compares a converted model with its dense reference.

    example: a tensor, a tuple of inputs, a mapping of named inputs, or a list of several of these.

    Checks the outputs by the error rule, every converted layer's weight for exactness and its own output at its own
    input, and that each layer's op was really called. Both models run in eval mode, and are as they were afterwards.
    A failed check is in the report; VerificationError is raised only where there is nothing to compare: outputs of
    another structure or shape, or no floating-point output at all.
    """
    sparse = {name: module for name, module in model.named_modules() if isinstance(module, SparseLinear)}
    with torch.no_grad():
        dense, exact, against = run_reference(reference, example)
        with untouched(model, sparse.values()), Watch(sparse) as watch:
            outputs = run(model, example)
        twins = {layer.name: layer for layer in find_layers(reference) if layer.read is not None}
        served = [
            twins[name] for name, kernels in watch.by_layer.items() if set(ON_ONEDNN) & set(kernels) and name in twins
        ]
        other = run_on_onednn(reference, served, example) if served else None
        error, limit = compare(outputs, dense, exact, other)
        weights = {name: layer.weight for name, layer in twins.items()}
        layers = tuple(_layer(name, module, weights.get(name), watch) for name, module in sparse.items())
    failures = [f"outputs: the largest error is {error:.3g}, allowed are {limit:.3g}"] if not error <= limit else []
    failures += [failure for layer in layers for failure in _failures(layer, layer.name in weights)]
    remarks = notes(model)
    if not layers and plan_of(model) is not None:
        remarks.append("the model's plan keeps every layer as it is")
    elif not layers:
        failures.append("no layer of the model is converted")
    calls = dict(sorted(watch.ops.items()))
    held = resident_bytes(model), resident_bytes(reference)
    return Report(layers, error, limit, against, calls, *held, tuple(failures), tuple(remarks))


def _layer(name: str, module: SparseLinear, weight: Callable[[], Tensor] | None, watch: Watch) -> LayerReport:
    kernels = watch.by_layer[name]
    exact = weight is not None and _same_bits(module.matrix().to_dense(), weight())
    used, ratio = tuple(sorted(set(kernels))), watch.ratios.get(name)
    return LayerReport(name, module.op.name, str(module.pattern), exact, len(kernels), used, ratio)


def _failures(layer: LayerReport, has_twin: bool) -> list[str]:
    found = []
    if not has_twin:
        found.append(f"{layer.name}: the reference has no weight of that name")
    elif not layer.exact:
        found.append(f"{layer.name}: its weight is not the reference's")
    if not layer.calls:
        found.append(
            f"{layer.name}: its op was never called by this example; something bypasses the layer, or it is unused"
        )
    elif layer.error_ratio is not None and not layer.error_ratio <= 1:
        found.append(f"{layer.name}: its error is {layer.error_ratio:.3g} times what the error rule allows")
    return found


def _same_bits(a: Tensor, b: Tensor) -> bool:
    """Equal non-zeros bit for bit; zeros of any sign are equal."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    whole = {2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    left, right = (torch.where(w == 0, 0, w).contiguous().view(whole) for w in (a, b.to(a.device)))
    return torch.equal(left, right)
