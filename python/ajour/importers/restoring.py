"""Whole weights of a file: every tensor as the finished model has it, masks applied and packed ones unpacked."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial

from torch import Tensor, arange, equal, int64

from ajour.importers import mapping, nncf, plain_zeros
from ajour.importers.checkpoint import Checkpoint
from ajour.importers.compressed_tensors import compressed_layers, decompress, refuse, refuse_names, sizes
from ajour.importers.live import TOOLS
from ajour.importers.saved import FORMAT, Saved, read_saved
from ajour.importers.tool import Place, check_mask, masked
from ajour.terms.errors import FileError

MOST_EXPANSION = 4096  # a file may become so many elements for each of its bytes, or somebody lies about a shape


@dataclass(frozen=True)
class Stored:
    """One tensor.

    name: as in the finished model's state_dict. read(): its values, masks applied; FileError if they are damaged.
    made: whether read() gives memory of its own, which the file's does not share. source: the tool whose mask is
    applied, or that packed it. note: what a reader must know.
    """

    name: str
    shape: tuple[int, ...]
    read: Callable[[], Tensor] = field(repr=False)
    made: bool = False
    source: str | None = None
    note: str | None = None


def restored(checkpoint: Checkpoint, mask_key: str | None = None) -> list[Stored]:
    """Every tensor of a file or folder, in its order; raises FileError for a packed kind that can't be read, by name.

    mask_key: where masks stand that no known tool wrote; see `mapping.py`.
    """
    refuse(checkpoint.config, str(checkpoint.path))
    if checkpoint.metadata.get("format") == FORMAT:
        own = list(_own(read_saved(checkpoint.path)))
        check_expansion(checkpoint, sum(math.prod(stored.shape) for stored in own))
        return own
    refuse_names(checkpoint.shapes, str(checkpoint.path))
    packed, used = _packed(checkpoint)
    masks = list(_masked(checkpoint, mask_key))
    for place, _ in masks:
        used |= {place.weight, *place.masks, *place.beside}
    found = [*packed, *(_applied(checkpoint, place, tool) for place, tool in masks)]
    plain = list(plain_zeros.places(checkpoint.shapes, used))
    nncf.refuse_hooks((place.weight for place in plain), str(checkpoint.path))
    _refuse_strays(checkpoint, plain)
    found += [_applied(checkpoint, place, None) for place in plain]
    _check_names(checkpoint, found)
    order = {name: place for place, name in enumerate(checkpoint)}
    return sorted(found, key=lambda stored: order.get(stored.name, order.get(f"{stored.name}_orig", len(order))))


def _refuse_strays(checkpoint: Checkpoint, plain: list[Place]) -> None:
    """Raises FileError for a mask that was not applied: without it the weights are not what the model runs with."""
    for place in plain:
        for tool in TOOLS:
            if tool.shapes_a_weight(place.weight, checkpoint.shapes):
                raise FileError(
                    f"{checkpoint.path}: {place.weight!r} {checkpoint.shapes[place.weight]} is named as a mask or a "
                    f"step of {tool.name}'s and can't be applied to a weight here (its shape or its place does not "
                    "fit, or another mask is there already); apply it before saving, or leave it out"
                )


def check_expansion(checkpoint: Checkpoint, elements: int) -> None:
    """Raises FileError if a file claims to hold far more than its bytes can say."""
    if checkpoint.nbytes is not None and elements > MOST_EXPANSION * max(checkpoint.nbytes, 4096):
        raise FileError(
            f"{checkpoint.path} has {checkpoint.nbytes} bytes and claims to hold {elements} weights, which is damage "
            "or malice"
        )


def _own(saved: Saved) -> Iterator[Stored]:
    """A file of ajour.save, dense again and with the in features of every layer in their own order."""
    orders = {name: order for name, order in saved.tensors.items() if name.rpartition(".")[2] == "ajour_order"}
    insides = {f"{name.removesuffix('ajour_order')}layer.": order for name, order in orders.items()}
    for name, layer in saved.layers.items():
        prefix = f"{name}." if name else ""
        read = layer.matrix.to_dense
        if prefix in insides:
            read = partial(_in_own_order, saved, prefix, read, insides[prefix], 1)
        prefix = prefix.removesuffix("layer.") if prefix in insides else prefix
        yield Stored(f"{prefix}weight", layer.matrix.shape, read, made=True, source=FORMAT)
        if layer.bias is not None:
            yield Stored(f"{prefix}bias", tuple(layer.bias.shape), partial(_same, layer.bias))
    for name, first in {**{name: name for name in saved.tensors}, **saved.ties}.items():
        if name in orders or name.removesuffix("ajour_turned") + "ajour_order" in orders:
            continue
        tensor, inside = saved.tensors[first], f"{name.rpartition('.')[0]}."
        read, turned = partial(_same, tensor), inside in insides and name == f"{inside}weight"
        if turned:
            side = 0 if f"{inside.removesuffix('layer.')}ajour_turned" in saved.tensors else 1
            read = partial(_in_own_order, saved, inside, read, insides[inside], side)
        outside = inside.removesuffix("layer.") + name.removeprefix(inside) if inside in insides else name
        yield Stored(outside, tuple(tensor.shape), read, made=turned)


def _in_own_order(saved: Saved, inside: str, read: Callable[[], Tensor], order: Tensor, side: int) -> Tensor:
    """The weight of a Permuted's layer as the wrapper shows it."""
    weight = read()
    fits = weight.dim() == 2 and order.dtype == int64 and order.dim() == 1
    if not fits or not equal(order.sort().values, arange(weight.shape[side])):
        raise FileError(f"{saved.path}: {inside.removesuffix('layer.')}ajour_order is no order of in features")
    return weight.index_select(side, order.argsort())


def _same(tensor: Tensor) -> Tensor:
    return tensor


def _packed(checkpoint: Checkpoint) -> tuple[list[Stored], set[str]]:
    """What compressed-tensors packed, and the names that it took for that."""
    found: list[Stored] = []
    used: set[str] = set()
    for layer, parts in compressed_layers(checkpoint.shapes).items():
        read = partial(decompress, checkpoint, layer, parts)
        shape = sizes(checkpoint, layer, parts)
        found.append(
            Stored(f"{layer}.weight" if layer else "weight", shape, read, made=True, source="compressed-tensors")
        )
        used.update(parts.values())
    return found, used


def _masked(checkpoint: Checkpoint, mask_key: str | None) -> Iterator[tuple[Place, str]]:
    """(place, tool); the caller's own key goes before what is known of tools, and no weight is found twice."""
    taken: set[str] = set()
    own = [] if mask_key is None else mapping.places(checkpoint.shapes, mask_key)
    every = [(mapping.NAME, own), *((tool.name, tool.places(checkpoint.shapes)) for tool in TOOLS)]
    for tool, places in every:
        for place in places:
            if place.weight not in taken and not taken.intersection(place.masks):
                taken |= {place.weight, *place.masks}
                yield place, tool


def _applied(checkpoint: Checkpoint, place: Place, tool: str | None) -> Stored:
    shape, read = checkpoint.shapes[place.weight], partial(_read, checkpoint, place)
    source = tool if place.masks else None
    return Stored(place.name, shape, read, made=bool(place.masks), source=source, note=place.note)


def _read(tensors: Mapping[str, Tensor], place: Place) -> Tensor:
    weight = tensors[place.weight]
    for name in place.masks:
        mask = tensors[name]
        if mask.shape != weight.shape:
            raise FileError(f"{name} is {tuple(mask.shape)}, the {place.weight} that it is for {tuple(weight.shape)}")
        weight = masked(weight, check_mask(mask, name, place.weight))
    return weight


def _check_names(checkpoint: Checkpoint, found: list[Stored]) -> None:
    names: set[str] = set()
    for stored in found:
        if stored.name in names:
            raise FileError(f"{checkpoint.path} holds {stored.name!r} in two forms; keep one of them")
        names.add(stored.name)
    # a side of 0 leaves no elements, but rows to go through
    check_expansion(checkpoint, sum(math.prod(max(side, 1) for side in stored.shape) for stored in found))
