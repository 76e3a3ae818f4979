"""Gradients under masks: their norm over kept entries, clipping by it, and dropping what no kept entry needs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ajour._native import native
from ajour.ops.masked_update.rows import DTYPES, chunks, rows
from ajour.ops.masked_update.update import Slice, flat_kept
from ajour.terms.errors import KernelError, PatternError
from ajour.train.held import local, local_part
from ajour.train.mask import Mask
from ajour.train.masks import Masks, check_shape

_POWERS = {2.0: 2, 1.0: 1, float("inf"): 0}  # of the compiled kernel, which calls the largest one power 0


@torch.no_grad()
def clip_grad_norm_(
    params: Any,
    masks: Mapping[str, Mask],
    max_norm: float,
    norm_type: float | str = 2.0,
    error_if_nonfinite: bool = False,
    foreach: bool | None = None,
) -> Tensor:
    """torch.nn.utils.clip_grad_norm_ with the norm of kept entries alone; returns that norm, before clipping.

    params: parameters or (name, parameter) pairs, as the masked optimizers take them; those without a mask count in
    full. What a gradient holds outside the mask, NaN and Inf too, has no part in the norm. Sharded gradients' norms are
    added up over their processes. With a GradScaler: `mask_gradients_`, `scaler.unscale_`, then this. `foreach` is
    torch's choice between two ways; here there is one. Raises RuntimeError as torch does if the norm is NaN or Inf and
    `error_if_nonfinite` is set, KernelError for a norm_type that isn't above 0.
    """
    power = float(norm_type)
    if not power > 0:
        raise KernelError(f"norm_type={norm_type}: expected a number above 0, or inf")
    grads = _grads(params, masks)
    if not grads:
        return torch.tensor(0.0)
    device = grads[0].flat.device
    alike: dict[Any, list[_Grad]] = {}
    for grad in grads:
        alike.setdefault((grad.flat.dtype, grad.flat.device, grad.shards()), []).append(grad)
    powers = torch.stack([_power_sum(each, power).to(device) for each in alike.values()])
    total = powers.max() if power == float("inf") else powers.sum() ** (1.0 / power)
    if error_if_nonfinite and not bool(total.isfinite()):
        raise RuntimeError(f"the norm of the gradients is {float(total)}: it can't be clipped")
    precise = torch.float64 if any(grad.flat.dtype == torch.float64 for grad in grads) else torch.float32
    factor = (max_norm / (total + 1e-6)).clamp(max=1.0)
    if device.type != "cpu" or float(factor) != 1.0:  # asking a GPU would wait for it
        torch._foreach_mul_([grad.local for grad in grads], factor.to(precise))
    return total.to(precise)


@torch.no_grad()
def mask_gradients_(params: Any, masks: Mapping[str, Mask]) -> None:
    """Sets the gradients to +0.0 where the masks don't keep the weight.

    The masked optimizers don't need it. A GradScaler does where a gradient may be NaN or Inf outside the mask: it looks
    at all of it and would skip the step and lower the scale. Call this before `scaler.unscale_` or `scaler.step`.
    """
    masked = [grad for grad in _grads(params, masks) if grad.bits is not None]
    here = [grad for grad in masked if grad.readable and grad.local.is_contiguous()]
    for itemsize in {grad.flat.element_size() for grad in here}:
        alike = [grad for grad in here if grad.flat.element_size() == itemsize]
        table = rows([grad.slice() for grad in alike], [grad.flat for grad in alike])
        native.masked_clear(table.data_ptr(), len(table), itemsize)
    for grad in masked:
        if grad not in here:
            grad.local.masked_fill_(~grad.kept.view(grad.local.shape), 0.0)


@dataclass(frozen=True, eq=False)
class _Grad:
    """A gradient: as the parameter has it, what of it lies in this process, that flat, and the mask's bits of it."""

    given: Any
    local: Tensor
    flat: Tensor
    bits: Tensor | None

    @property
    def readable(self) -> bool:
        """Whether the compiled kernels read it."""
        return self.flat.device.type == "cpu" and self.flat.dtype in DTYPES

    @property
    def kept(self) -> Tensor:
        kept = flat_kept(self.bits, self.flat.numel())
        return torch.ones_like(self.flat, dtype=torch.bool) if kept is None else kept

    def slice(self) -> Slice:
        return Slice(self.flat, self.bits, None, (), None)

    def shards(self) -> tuple[Any, ...]:
        """The process groups among which it is cut."""
        if not hasattr(self.given, "to_local"):
            return ()
        if any(placement.is_partial() for placement in self.given.placements):
            raise KernelError("a gradient is a partial sum; redistribute it before its norm is taken")
        mesh, placements = self.given.device_mesh, self.given.placements
        return tuple(mesh.get_group(dim) for dim, placement in enumerate(placements) if placement.is_shard())


def _grads(params: Any, masks: Mapping[str, Mask]) -> list[_Grad]:
    given: Iterable[Any] = [params] if isinstance(params, Tensor) else list(params)
    pairs = [each if isinstance(each, tuple) else (None, each) for each in given]
    masks = masks if isinstance(masks, Masks) else Masks(masks)
    known = masks.names_of(parameter for _, parameter in pairs)
    names = [name if name in masks else found for (name, _), found in zip(pairs, known, strict=True)]
    for wanted in masks:
        if wanted not in names:
            raise PatternError(f"a mask is for {wanted!r}, which is not among these; give model.named_parameters()")
    found = []
    for name, (_, parameter) in zip(names, pairs, strict=True):
        if parameter.grad is None:
            continue
        here, bits = local(parameter.grad), None
        if name is not None:
            check_shape(name, masks[name], parameter)
            bits = local_part(masks[name], parameter).to(here.device).bits
        found.append(_Grad(parameter.grad, here, here.contiguous().view(-1), bits))
    return found


def _power_sum(grads: Sequence[_Grad], norm_type: float) -> Tensor:
    """float64: the sum of |g|^norm_type over kept entries in all processes, or the largest |g|; grads of one kind."""
    largest = norm_type == float("inf")
    if grads[0].readable and norm_type in _POWERS:
        slices = [grad.slice() for grad in grads]
        table, dtype = rows(slices, [grad.flat for grad in grads]), DTYPES.index(grads[0].flat.dtype)
        parts = torch.empty(sum(map(chunks, slices)), dtype=torch.float64, device="cpu")
        native.masked_norm(table.data_ptr(), len(table), dtype, _POWERS[norm_type], parts.data_ptr())
    else:
        precise = torch.promote_types(grads[0].flat.dtype, torch.float32)
        kept = [torch.where(grad.kept, grad.flat, 0.0) for grad in grads if grad.flat.numel()]
        norms = [torch.linalg.vector_norm(each, norm_type, dtype=precise).double() for each in kept]
        parts = torch.stack(norms) if norms else torch.zeros(1, dtype=torch.float64, device=grads[0].flat.device)
        parts = parts if largest else parts**norm_type
    total = torch.cat([parts, parts.new_zeros(1)]).max() if largest else parts.sum()
    for group in grads[0].shards():
        torch.distributed.all_reduce(
            total, torch.distributed.ReduceOp.MAX if largest else torch.distributed.ReduceOp.SUM, group
        )
    return total
