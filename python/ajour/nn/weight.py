"""The dense weight of a sparse layer, for code that reads `.weight`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from ajour.terms.errors import KernelError


class Looks(NamedTuple):
    """What a contiguous tensor looks like; a tensor on meta takes ten times as long to make."""

    shape: tuple[int, int]
    dtype: torch.dtype
    device: torch.device

    def stride(self) -> tuple[int, int]:
        """Of a contiguous tensor."""
        return self.shape[1], 1


class Weight(Tensor):
    """Read-only; shape, dtype and device cost nothing, and the values are rebuilt when something computes with them.

    Code like T5's reads `.weight.dtype` in every forward: rebuilding there would cost more than the layer does. Its
    views (`.t()`, `[0]`, `.data`, `.view(-1)`) are read-only too. KernelError for whatever would write to one of them:
    the layer holds its weight in another form and would never see it.
    """

    _owner: Callable[[], str]  # asked only for a refusal
    _rebuild: Callable[[], Tensor]
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(
        cls,
        owner: Callable[[], str],
        looks: Tensor | Looks,
        rebuild: Callable[[], Tensor],
        device: torch.device | None = None,
    ) -> Weight:
        """looks: its shape, strides and dtype; device: where it is, if `looks` is on another."""
        weight: Weight = torch.Tensor._make_wrapper_subclass(
            cls, looks.shape, looks.stride(), dtype=looks.dtype, device=device or looks.device
        )
        weight._owner, weight._rebuild = owner, rebuild
        return weight

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs, schema = kwargs or {}, func._schema
        if func is torch.ops.aten.detach.default:
            return cls(args[0]._owner, args[0], args[0]._rebuild)
        if schema.is_mutable:
            _refuse_writing(func, args, kwargs)
        elif isinstance(args[0] if args else None, cls) and _is_view(schema):
            return _view(func, args, kwargs)
        args, kwargs = tree_map_only(cls, lambda weight: weight._rebuild(), (args, kwargs))
        return func(*args, **kwargs)

    @property
    def data(self) -> Tensor:  # type: ignore[override]
        """The weight without its gradient, as read-only as it is."""
        return self.detach()

    @data.setter
    def data(self, value: Tensor) -> None:
        raise refusal(self._owner, "setting its data")

    @property
    def grad(self) -> Tensor | None:  # type: ignore[override]
        """None: gradients belong to what it is read from."""
        return None

    @grad.setter
    def grad(self, value: Tensor | None) -> None:
        raise refusal(self._owner, "giving it a gradient")

    def requires_grad_(self, requires_grad: bool = True) -> Tensor:
        """Refused where it has no gradient: nothing would be trained."""
        if requires_grad and not self.requires_grad:
            raise refusal(self._owner, "training it")
        return super().requires_grad_(requires_grad)

    def numpy(self, *, force: bool = False) -> Any:
        """The rebuilt weight as an array, read-only; RuntimeError as torch's where it requires a gradient."""
        array = self._rebuild().detach().requires_grad_(self.requires_grad).numpy(force=force)
        array.flags.writeable = False
        return array

    def tolist(self) -> Any:
        """The rebuilt weight as nested lists."""
        return self._rebuild().tolist()

    def data_ptr(self) -> int:
        """Refused: there is no memory to point at."""
        raise KernelError(f"the weight of {self._owner()} has no memory of its own; clone() it first")

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        return self._rebuild().clone()

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self._rebuild().clone().__reduce_ex__(protocol)

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return repr(self._rebuild())


def refusal(owner: Callable[[], str], attempt: str) -> KernelError:
    """What to say to whoever attempts to change the weight of `owner()`."""
    return KernelError(
        f"the weight of {owner()} is rebuilt for reading, and {attempt} would change only a copy; "
        "revert the model first, edit its weight, and convert it again"
    )


def read_of(owner: Callable[[], str], looks: Looks, source: Tensor, read: Callable[[Tensor], Tensor]) -> Tensor:
    """The Weight read(source), rebuilt once and only when its values are used; source gets its gradient.

    read: linear in source.
    """
    weight: Tensor = _Read.apply(owner, looks, source, read)  # type: ignore[no-untyped-call]
    return weight


class _Read(torch.autograd.Function):
    """A Weight and the gradient of reading it, which asks for no values."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, owner: Callable[[], str], looks: Looks, source: Tensor, read: Callable[[Tensor], Tensor]
    ) -> Tensor:
        ctx.read, ctx.source = read, source.detach()
        rebuild = cache(lambda held=ctx.source: read(held).contiguous())
        return Weight(owner, looks, rebuild)

    @staticmethod
    def backward(ctx: Any, dw: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        differentiable = torch.is_grad_enabled()
        with torch.enable_grad():
            source = torch.zeros_like(ctx.source).requires_grad_()
            (gradient,) = torch.autograd.grad(ctx.read(source), source, dw, create_graph=differentiable)
        return None, None, gradient, None


def _refuse_writing(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    for place, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            given = kwargs.get(argument.name, args[place] if place < len(args) else None)
            for tensor in given if isinstance(given, (list, tuple)) else [given]:
                if isinstance(tensor, Weight):
                    raise refusal(tensor._owner, str(func))


def _is_view(schema: Any) -> bool:
    return any(returned.alias_info is not None for returned in schema.returns)


def _view(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A view or a list of views, with looks taken from the same views of a tensor on meta."""
    base: Weight = args[0]
    like = torch.empty_strided(base.shape, base.stride(), dtype=base.dtype, device="meta")
    looks = func(like, *args[1:], **kwargs)

    def rebuild(place: int | None) -> Tensor:
        made = func(base._rebuild(), *args[1:], **kwargs)
        tensor: Tensor = made if place is None else made[place]
        return tensor

    if isinstance(looks, Tensor):
        return Weight(base._owner, looks, partial(rebuild, None), base.device)
    return [Weight(base._owner, one, partial(rebuild, place), base.device) for place, one in enumerate(looks)]
