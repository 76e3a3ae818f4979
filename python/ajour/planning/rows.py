"""Which numbers of rows each layer sees: the example runs once, watched, and leaves no trace."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ajour.layers import Layer

MOST_COUNTS = 4  # distinct numbers of rows that are planned for, if the example produces more


def learn_rows(
    model: nn.Module, layers: Sequence[Layer], example: Any, tell: Callable[[str], None] = lambda text: None
) -> dict[str, set[int]]:
    """Rows of x (all leading sides multiplied) that each layer sees, by layer; no entry for layers that never ran.

    example: a tensor, a tuple of inputs, a mapping of named inputs, or a list of several of these, for several sizes.
    tell:    called with what a reader should know of converting a model that runs like this.
    The model runs in eval mode under no_grad; training flags, buffers, hooks and random state are as they were after.
    """
    seen: dict[str, set[int]] = {}
    watched = [layer for layer in layers if layer.reason is None]
    with untouched(model, [layer.module for layer in watched]), without_fast_paths(), torch.no_grad():
        handles = []
        try:
            for name, module in model.named_modules():
                if isinstance(module, nn.TransformerEncoder) and getattr(module, "use_nested_tensor", False):
                    handles.append(module.register_forward_pre_hook(_watch_padding(name, tell), with_kwargs=True))
            for layer in watched:
                handles.append(layer.module.register_forward_pre_hook(_watch(seen, layer.name), with_kwargs=True))
            for inputs in example if isinstance(example, list) else [example]:
                call(model, inputs)
        finally:
            for handle in handles:
                handle.remove()
    return seen


def call(model: nn.Module, inputs: Any) -> Any:
    """model(inputs), whether they are one tensor, a tuple or a mapping."""
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple) else model(inputs)


def planned_rows(seen: set[int], wanted: Sequence[int] | None) -> tuple[int, ...]:
    """The numbers of rows to measure, rising: `wanted` if given, else those seen, thinned out to MOST_COUNTS."""
    counts = sorted({m for m in (seen if wanted is None else wanted) if m > 0})
    if wanted is None and len(counts) > MOST_COUNTS:
        places = {round(i * (len(counts) - 1) / (MOST_COUNTS - 1)) for i in range(MOST_COUNTS)}
        counts = [counts[place] for place in sorted(places)]
    return tuple(counts)


def _watch(seen: dict[str, set[int]], name: str) -> Any:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x = next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)
        if x is not None and x.dim():
            seen.setdefault(name, set()).add(x.shape[:-1].numel())

    return hook


def _watch_padding(name: str, tell: Callable[[str], None]) -> Any:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if (args[2] if len(args) > 2 else kwargs.get("src_key_padding_mask")) is not None:
            tell(
                f"{name or 'the model'}: where src_key_padding_mask says padding, TransformerEncoder in eval puts out "
                "0.0 by its fast path, which converting one of its layers switches off: then padding has other values"
            )

    return hook


@contextmanager
def without_fast_paths() -> Iterator[None]:
    """torch's transformers call their layers inside; beside hooks, their nested tensors would fail in the layers."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@contextmanager
def untouched(model: nn.Module, readers: Iterable[nn.Module] = ()) -> Iterator[None]:
    """Eval mode inside; then flags, buffers and RNG as before. `readers` only read their own buffers: no copy is kept.

    Buffers that the forward writes to get their values back, and those that it replaces are the old ones again.
    """
    flags = {module: module.training for module in model.modules()}
    own = {id(buffer) for module in readers for buffer in module.buffers(recurse=False)}
    held = [(module._buffers, dict(module._buffers)) for module in flags]
    buffers = [(b, b.clone(), _version(b)) for b in model.buffers() if id(b) not in own and not b.is_meta]
    devices = sorted({p.device.index for p in model.parameters() if p.device.type == "cuda"})
    try:
        with torch.random.fork_rng(devices=devices):
            for module in flags:
                module.training = False
            yield
    finally:
        for module, flag in flags.items():
            module.training = flag
        for now, then in held:
            if list(map(id, now.values())) != list(map(id, then.values())):
                now.clear()
                now.update(then)
        for buffer, before, version in buffers:
            if _version(buffer) != version or buffer.is_inference():
                with torch.inference_mode(buffer.is_inference()), torch.no_grad():
                    buffer.copy_(before)


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version
