"""Masks: which entries of a model's parameters may be other than zero, by the parameters' names."""

from __future__ import annotations

import copy
import json
import weakref
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from os import PathLike
from typing import Any

import safetensors
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ajour.importers.saved import FORMAT, mask_key
from ajour.importers.torch_prune import is_prune_hook
from ajour.layer_choice import LayerChoice, choose_layers, stored_parameter
from ajour.layers import Layer, find_layers, is_conv1d, is_converted
from ajour.magnitude import keep_largest, magnitudes
from ajour.terms.errors import FileError, PatternError
from ajour.terms.pattern import NM, Dense, Pattern
from ajour.train.mask import Mask

_FORMAT = "ajour.masks"
_VERSION = 1


class Masks(MutableMapping[str, Mask]):
    """An ordered mapping from parameter name (as in `model.named_parameters()`) to its Mask.

    A parameter without a mask is kept whole, in every method here. Masks made from a model also know its parameters, so
    that `model.parameters()` is enough where names are missing. An optimizer, a schedule and `clip_grad_norm_` that
    were given the same Masks share them: a mask that one of them changes is changed for all.
    """

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, masks: Mapping[str, Mask], model: nn.Module | None = None) -> None:
        """Raises PatternError by name if `model` lacks a parameter, its shape differs, or it stands there twice."""
        self._masks = dict(masks)
        self.version = 0  # counts changes, for those who share the masks
        self._parameters: dict[str, weakref.ref[Tensor]] = {}
        if model is not None:
            self.bind(model)

    @classmethod
    def from_zeros(cls, model: nn.Module, layers: LayerChoice | None = None) -> Masks:
        """What is zero now (-0.0 too) stays zero: a mask for each of `layers`, by default each that holds a zero.

        Masks that pruning tools left on the layers count. A weight that is zero everywhere is refused unless it is
        named, as it may be new (a LoRA's B) as well as pruned.
        """
        masks, names = {}, _names(model)
        for layer in _zeroed(model, layers):
            name, kept = names[id(stored_parameter(layer))], _as_stored(layer, layer.weight() != 0)
            if layers is None and kept.all():
                continue
            if layers is None and not kept.any():
                raise PatternError(f"{name!r} is zero everywhere: new, or pruned in whole? Say which layers= are meant")
            masks[name] = Mask.from_dense(kept)
        return cls(masks, model)

    @classmethod
    def from_pattern(
        cls, model: nn.Module, pattern: Pattern, density: float | None = None, layers: LayerChoice | None = None
    ) -> Masks:
        """The largest weights stay, as `ajour.prune` selects them; the model itself isn't changed (see `apply_`).

        density: the share that is kept of blocks or weights; N:M has its own. layers: as in `ajour.prune`.
        """
        if isinstance(pattern, Dense) or isinstance(pattern, NM) != (density is None):
            raise PatternError(f"{pattern} and density={density} don't go together; N:M alone has its own density")
        if density is not None and not 0 <= density <= 1:
            raise PatternError(f"density is the share that is kept, from 0 to 1; found {density}")
        masks, names = {}, _names(model)
        for layer in choose_layers(find_layers(model), layers):
            kept = keep_largest(magnitudes(layer.weight()), pattern, 1.0 if density is None else density)
            masks[names[id(stored_parameter(layer))]] = Mask.from_dense(_as_stored(layer, kept))
        return cls(masks, model)

    @classmethod
    def from_prune(cls, model: nn.Module) -> Masks:
        """The masks of torch.nn.utils.prune, under the names of the parameters they shape (`fc.weight_orig`).

        Raises PatternError if nothing in the model is pruned that way.
        """
        masks = {}
        for path, module in model.named_modules():
            for hook in module._forward_pre_hooks.values():
                if is_prune_hook(hook):
                    leaf = str(hook._tensor_name)
                    name = f"{path}.{leaf}_orig" if path else f"{leaf}_orig"
                    masks[name] = Mask.from_dense(module.get_buffer(f"{leaf}_mask"))
        if not masks:
            raise PatternError("nothing in this model was pruned by torch.nn.utils.prune; use Masks.from_zeros")
        return cls(masks, model)

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], model: nn.Module | None = None) -> Masks:
        """tensors: parameter name -> bool, or zeros and ones, of the parameter's shape; 1 is kept."""
        masks = {}
        for name, tensor in tensors.items():
            try:
                masks[name] = Mask.from_dense(tensor)
            except PatternError as error:
                raise PatternError(f"{name!r}: {error}") from None
        return cls(masks, model)

    def __copy__(self) -> Masks:
        return self._like(self._masks)

    def __deepcopy__(self, memo: dict[int, Any]) -> Masks:
        """Together with their model, after it, masks know the copy's parameters; alone those of the same model."""
        made = Masks(copy.deepcopy(self._masks, memo))
        for name, ref in self._parameters.items():
            if (parameter := ref()) is not None:
                made._parameters[name] = weakref.ref(memo.get(id(parameter), parameter))
        return made

    def __getstate__(self) -> dict[str, Any]:
        """Masks alone: a pickle holds no weights; `bind` lets them know a model's parameters again."""
        return self.__dict__ | {"_parameters": {}}

    def bind(self, model: nn.Module) -> Masks:
        """Checks every mask against the parameter of its name in `model`, and remembers the parameters."""
        held = dict(model.named_parameters(remove_duplicate=False))
        owners: dict[int, str] = {}
        for name, mask in self.items():
            if name not in held:
                raise PatternError(f"a mask is for {name!r}, which is no parameter of this {type(model).__name__}")
            check_shape(name, mask, held[name])
            if (other := owners.setdefault(id(held[name]), name)) != name:
                raise PatternError(f"{name!r} and {other!r} are one tied parameter under two masks; keep one of them")
        self._parameters = {name: weakref.ref(held[name]) for name in self}
        return self

    def names_of(self, parameters: Iterable[Tensor]) -> list[str | None]:
        """The name of each parameter under which a mask is known, None for those without a mask."""
        known = {id(p): name for name, ref in self._parameters.items() if (p := ref()) is not None}
        return [known.get(id(p)) for p in parameters]

    def density(self, name: str | None = None) -> float:
        """The kept share of one parameter, or of all that have a mask."""
        if name is not None:
            return self[name].density
        total = sum(mask.numel for mask in self.values())
        return sum(mask.kept for mask in self.values()) / total if total else 1.0

    def densities(self) -> dict[str, float]:
        """Parameter name -> kept share."""
        return {name: mask.density for name, mask in self.items()}

    @torch.no_grad()
    def apply_(self, model: nn.Module) -> Masks:
        """Sets every weight of `model` that is not kept to exactly +0.0; all masks are checked first."""
        self.bind(model)
        for name, mask in self.items():
            mask.apply_(model.get_parameter(name))
        return self

    def to(self, device: torch.device | str) -> Masks:
        """The same masks on another device."""
        return self._like({name: mask.to(device) for name, mask in self.items()})

    def differences(self, other: Masks) -> dict[str, int]:
        """Parameter name -> how many entries only one of both keeps, where there are any."""
        found = {}
        for name in [*self, *(name for name in other if name not in self)]:
            mine, theirs = self.get(name), other.get(name)
            both = mine if mine is not None else theirs
            assert both is not None
            count = (mine ^ theirs).kept if mine is not None and theirs is not None else both.numel - both.kept
            if count:
                found[name] = count
        return found

    def __or__(self, other: Masks) -> Masks:
        """Kept in either; so only names that have a mask in both have one here."""
        return self._like({name: mask | other[name] for name, mask in self.items() if name in other})

    def __and__(self, other: Masks) -> Masks:
        """Kept in both."""
        both = {name: mask & other[name] if name in other else mask for name, mask in self.items()}
        merged = self._like(both | {name: mask for name, mask in other.items() if name not in self})
        merged._parameters = {**other._parameters, **self._parameters}
        return merged

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Masks):
            return NotImplemented
        return self._masks.keys() == other._masks.keys() and all(mask == other[name] for name, mask in self.items())

    def state_dict(self) -> dict[str, Tensor]:
        """Name -> bits, uint8, and under `name:shape` the shape, int64: what a file holds beside a model's tensors."""
        bits = {name: mask.bits for name, mask in self.items()}
        return bits | {f"{name}:shape": torch.tensor(mask.shape, dtype=torch.int64) for name, mask in self.items()}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Tensor], model: nn.Module | None = None) -> Masks:
        """The inverse of `state_dict`; FileError, by name, for one that is damaged."""
        masks = {}
        for name in (name for name in state if not name.endswith(":shape")):
            if f"{name}:shape" not in state:
                raise FileError(f"the mask {name!r} has no shape beside it ({name}:shape)")
            try:
                masks[name] = Mask(state[name], state[f"{name}:shape"].tolist())
            except PatternError as error:
                raise FileError(f"the mask {name!r}: {error}") from None
        return cls(masks, model)

    def save(self, path: str | PathLike[str]) -> None:
        """Writes one safetensors file, one bit for each weight."""
        shapes = json.dumps({name: list(mask.shape) for name, mask in self.items()})
        bits = {name: mask.bits.cpu() for name, mask in self.items()}
        try:
            save_file(bits, path, {"format": _FORMAT, "version": str(_VERSION), "shapes": shapes})
        except (OSError, safetensors.SafetensorError) as error:
            raise FileError(f"{path} was not written: {error}") from error

    @classmethod
    def load(cls, path: str | PathLike[str], model: nn.Module | None = None) -> Masks:
        """Reads what `save` or `ajour.save` wrote, and checks it against `model`; FileError if there are no masks."""
        try:
            with safetensors.safe_open(path, "pt") as file:  # type: ignore[no-untyped-call]
                about = file.metadata() or {}
                key, place = ("masks", mask_key) if about.get("format") == FORMAT else ("shapes", str)
                known = about.get("format") in (_FORMAT, FORMAT) and about.get("version") == str(_VERSION)
                if not known or key not in about:
                    raise FileError(
                        f"{path} holds no masks of version {_VERSION}; write them with Masks.save or ajour.save(masks=)"
                    )
                shapes = json.loads(about[key])
                state = {name: file.get_tensor(place(name)) for name in shapes}
        except (OSError, safetensors.SafetensorError, KeyError, ValueError) as error:
            raise FileError(f"{path} could not be read: {error}") from error
        state |= {f"{name}:shape": torch.tensor(shape, dtype=torch.int64) for name, shape in shapes.items()}
        return cls.from_state_dict(state, model)

    def __getitem__(self, name: str) -> Mask:
        return self._masks[name]

    def __setitem__(self, name: str, mask: Mask) -> None:
        """Replaces or adds a mask; a replaced one keeps its shape. Optimizers move with it by `change_masks`."""
        if name in self._masks and self._masks[name].shape != mask.shape:
            raise PatternError(
                f"{name!r}: expected a mask of {tuple(self._masks[name].shape)}, found {tuple(mask.shape)}"
            )
        self._masks[name] = mask
        self.version += 1

    def __delitem__(self, name: str) -> None:
        del self._masks[name]
        self.version += 1

    def __iter__(self) -> Iterator[str]:
        return iter(self._masks)

    def __len__(self) -> int:
        return len(self._masks)

    def __repr__(self) -> str:
        return f"Masks({len(self)} parameters, density={self.density():.3f})"

    def _like(self, masks: Mapping[str, Mask]) -> Masks:
        made = Masks(masks)
        made._parameters = dict(self._parameters)
        return made


def check_shape(name: str, mask: Mask, parameter: Tensor) -> None:
    """PatternError, by name, unless the mask has the parameter's shape."""
    if mask.shape != parameter.shape:
        raise PatternError(f"{name!r}: its mask is {tuple(mask.shape)}, the parameter {tuple(parameter.shape)}")


def _names(model: nn.Module) -> dict[int, str]:
    return {id(parameter): name for name, parameter in model.named_parameters()}


def _zeroed(model: nn.Module, layers: LayerChoice | None) -> list[Layer]:
    """The layers that `from_zeros` looks at: by default also those that only can't be converted (convolutions).

    A weight that is an embedding's too is left out, as a padding row is zero for another reason.
    """
    if layers is not None:
        return choose_layers(find_layers(model), layers)
    embedded = {id(m.weight) for m in model.modules() if isinstance(m, (nn.Embedding, nn.EmbeddingBag))}
    found = [layer for layer in find_layers(model) if layer.read is not None and not is_converted(layer.module)]
    return [layer for layer in found if id(stored_parameter(layer)) not in embedded]


def _as_stored(layer: Layer, kept: Tensor) -> Tensor:
    """kept: [n, k] in the orientation and shape in which the module stores its weight."""
    return (kept.t() if is_conv1d(layer.module) else kept).reshape(stored_parameter(layer).shape)
