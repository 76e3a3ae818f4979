"""The outputs of two models, compared by the error rule."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from ajour.conversion.fast_path import has_fast_path
from ajour.importers.torch_prune import is_prune_hook
from ajour.layers import Layer
from ajour.ops import DENSE_LINEAR
from ajour.planning.rows import call, untouched, without_fast_paths
from ajour.terms.errors import AjourError, VerificationError


def run_reference(reference: nn.Module, example: Any) -> tuple[list[Tensor], list[Tensor], str]:
    """The reference's outputs in its own dtype, and those to compare with."""
    inputs = tree_map(lambda v: v.double() if isinstance(v, Tensor) and v.is_floating_point() else v, example)
    with untouched(reference):
        dense = run(reference, example)
    try:
        with untouched(reference), _in_float64(reference):
            exact = run(reference, inputs)
    except (RuntimeError, AjourError):  # something in it takes no float64, a converted layer for one
        return dense, dense, "the reference"
    return dense, exact, "the reference in float64"


@contextmanager
def _in_float64(model: nn.Module) -> Iterator[None]:
    """Every parameter and buffer widened in place, and afterwards the very memory that it had."""
    tensors = {id(t): t for t in (*model.parameters(), *model.buffers()) if t.is_floating_point()}
    before = {key: tensor.data for key, tensor in tensors.items()}
    try:
        for tensor in tensors.values():
            tensor.data = tensor.data.double()
        yield
    finally:
        for key, tensor in tensors.items():
            tensor.data = before[key]
        for module in model.modules():
            for hook in module._forward_pre_hooks.values():
                if is_prune_hook(hook):
                    hook(module, ())  # what it computed for the forward above was in float64


def run_on_onednn(reference: nn.Module, layers: Sequence[Layer], example: Any) -> list[Tensor]:
    """The reference's outputs with these of its layers computed by oneDNN, as converted ones may be.

    Hooks don't go with torch's fast paths, whose outputs at padding are other ones: with fast paths it is the outputs
    with them, changed by what oneDNN changes without them.
    """
    kernel = DENSE_LINEAR.kernel("onednn")
    handles = []

    def on_onednn(layer: Layer) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], y: Tensor) -> Tensor:
            x, w = args[0], layer.weight()
            flat: Tensor = kernel.run(x.reshape(-1, w.shape[1]), [w], layer.bias(), None, "none", None)
            return flat.reshape(y.shape)

        return hook

    with untouched(reference), without_fast_paths():
        plain = run(reference, example) if has_fast_path(reference) else None
        try:
            handles = [layer.module.register_forward_hook(on_onednn(layer)) for layer in layers]
            found = run(reference, example)
        finally:
            for handle in handles:
                handle.remove()
    if plain is None:
        return found
    with untouched(reference):
        fast = run(reference, example)
    return [
        f.double() + torch.where(y == p, 0.0, y.double() - p.double())
        for f, y, p in zip(fast, found, plain, strict=True)
    ]


def run(model: nn.Module, example: Any) -> list[Tensor]:
    """Every floating-point tensor of the outputs, in order."""
    outputs = [call(model, inputs) for inputs in (example if isinstance(example, list) else [example])]
    values = tree_leaves([output.to_tuple() if hasattr(output, "to_tuple") else output for output in outputs])
    return [value for value in values if isinstance(value, Tensor) and value.is_floating_point()]


def compare(
    outputs: list[Tensor], dense: list[Tensor], exact: list[Tensor], other: list[Tensor] | None = None
) -> tuple[float, float]:
    """The largest error and its limit, of the output that comes closest to its limit.

    other: the dense outputs by another library that the model runs on too; the larger error of both is the bar.
    """
    shapes, expected = [tuple(y.shape) for y in outputs], [tuple(y.shape) for y in dense]
    if shapes != expected or not shapes:
        raise VerificationError(
            f"there is nothing to compare: the model's outputs are {shapes}, the reference's {expected}"
        )
    pairs = [(0.0, 0.0)]
    for y, y_dense, y_exact, y_other in zip(outputs, dense, exact, dense if other is None else other, strict=True):
        if y.numel():
            eps = torch.finfo(y_dense.dtype).eps
            of_dense = max(_distance(y_dense, y_exact), _distance(y_other, y_exact))
            limit = 2 * of_dense + 4 * eps * _size(y_exact)
            pairs.append((_distance(y, y_exact), 64 * eps * _size(y_dense) if y_exact is y_dense else limit))
    return max(pairs, key=lambda pair: (pair[0] / pair[1] if pair[1] else pair[0] and torch.inf, pair[1]))


def _size(y: Tensor) -> float:
    return float(y.abs().nan_to_num(nan=0.0, posinf=0.0).max())


def _distance(a: Tensor, b: Tensor) -> float:
    """The largest difference; NaN and Inf count as equal where both have the same, else as inf."""
    a, b = a.double(), b.double().to(a.device)
    same = (a == b) | (a.isnan() & b.isnan())
    return float(torch.where(same, 0.0, (a - b).abs()).nan_to_num(nan=torch.inf).max())
