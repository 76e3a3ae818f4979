"""save: one safetensors file, whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

import safetensors
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ajour.conversion.recorded import plan_of
from ajour.importers.saved import Saved, SavedLayer, describe, mask_key
from ajour.nn import SparseLinear
from ajour.terms.errors import FileError

if TYPE_CHECKING:
    from ajour.train.mask import Mask


def save(model: nn.Module, path: str | PathLike[str], *, masks: Mapping[str, Mask] | None = None) -> None:
    """Writes the model to one safetensors file: converted layers in canonical form, all else as in its state_dict.

    Tied tensors are written once, and no dense copy of a converted weight. The plan and a description of the layers
    are in the file's metadata. The file appears whole or not at all.
    masks: of `ajour.train`, written beside the parameters that they are for, one bit for each entry;
    `train.Masks.load(path, model)` reads them.

    Raises FileError if the file can't be written, or the model holds something that such a file can't, and PatternError
    by name for a mask that doesn't fit the model.
    """
    path = Path(path)
    with torch.no_grad():
        saved = _described(model, path)
    if masks is not None:
        saved = replace(saved, masks=_masks(model, masks))
    tensors = {**saved.tensors, **saved.buffers, **{mask_key(name): bits for name, (bits, _) in saved.masks.items()}}
    for name, layer in saved.layers.items():
        prefix = f"{name}." if name else ""
        tensors.update({prefix + part: tensor for part, tensor in layer.matrix.tensors().items()})
        if layer.bias is not None:
            tensors[f"{prefix}bias"] = layer.bias
    for name, tensor in tensors.items():
        if tensor.is_meta:
            raise FileError(f"{path} was not written: {name!r} is on the meta device and has no values")
    # safetensors refuses views, and tensors that share memory
    own = {name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}
    with _whole(path) as unfinished:
        try:
            save_file(own, unfinished, describe(saved))
        except (safetensors.SafetensorError, RuntimeError, KeyError, ValueError) as error:
            raise FileError(f"{path} was not written: {error}") from error


def _described(model: nn.Module, path: Path) -> Saved:
    sparse = {name: module for name, module in model.named_modules() if isinstance(module, SparseLinear)}
    layers = {name: _layer(module) for name, module in sparse.items()}
    owned = tuple(f"{name}." if name else "" for name in sparse)
    tensors: dict[str, Tensor] = {}
    ties: dict[str, str] = {}
    first: dict[object, str] = {}
    for name, value in model.state_dict(keep_vars=True).items():
        if owned and name.startswith(owned):
            continue
        if not isinstance(value, Tensor):
            raise FileError(
                f"{path} was not written: {name!r} in the state_dict is no tensor but {type(value).__name__}"
            )
        place = first.setdefault(_identity(value), name)
        if place == name:
            tensors[name] = value
        else:
            ties[name] = place
    plan = plan_of(model)
    return Saved(path, layers, tensors, ties, _unsaved_buffers(model), plan.to_json() if plan is not None else "", {})


def _masks(model: nn.Module, masks: Mapping[str, Mask]) -> dict[str, tuple[Tensor, list[int]]]:
    from ajour.train.masks import Masks  # training is not needed to save a model

    return {name: (mask.bits, list(mask.shape)) for name, mask in Masks(masks, model).items()}


def _layer(module: SparseLinear) -> SavedLayer:
    bias = module._parameters["bias"]
    return SavedLayer(module.op.name, module.matrix(), bias, module.activation, module.trainable)


def _identity(tensor: Tensor) -> object:
    """Equal for two tensors that are the same memory seen in the same way."""
    if tensor.is_meta or not tensor.numel() or type(tensor) not in (Tensor, nn.Parameter):
        return id(tensor)
    return tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()


def _unsaved_buffers(model: nn.Module) -> dict[str, Tensor]:
    """What a state_dict leaves out and a skeleton on the meta device would lack."""
    return {
        f"{path}.{leaf}" if path else leaf: buffer
        for path, module in model.named_modules()
        if not isinstance(module, SparseLinear)
        for leaf, buffer in module._buffers.items()
        if buffer is not None and leaf in module._non_persistent_buffers_set
    }


@contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """A file beside `path` that takes its place once it is complete, and is removed otherwise; links stay links."""
    path = path.resolve()
    if path.exists() and not path.is_file():
        raise FileError(f"{path} was not written: it is no file; give the name of a file to write")
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".unfinished", dir=path.parent)
    except OSError as error:
        raise FileError(f"{path} was not written: {error}") from error
    os.close(handle)
    unfinished = Path(name)
    try:
        yield unfinished
        unfinished.chmod(0o666 & ~_umask())
        try:
            unfinished.replace(path)
        except OSError as error:
            raise FileError(f"{path} was not written: {error}") from error
    finally:
        unfinished.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
