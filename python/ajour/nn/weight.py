"""The dense weight of a sparse layer, for code that reads `.weight`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from ajour.terms.errors import KernelError


class Weight(Tensor):
    """Read-only; shape, dtype and device cost nothing, and the values are rebuilt when something computes with them.

    Code like T5's reads `.weight.dtype` in every forward: rebuilding there would cost more than the layer does.
    """

    _rebuild: Callable[[], Tensor]
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(
        cls, shape: tuple[int, int], dtype: torch.dtype, device: torch.device, rebuild: Callable[[], Tensor]
    ) -> Weight:
        weight: Weight = torch.Tensor._make_wrapper_subclass(cls, shape, dtype=dtype, device=device)
        weight._rebuild = rebuild
        return weight

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is torch.ops.aten.detach.default:
            held: Weight = args[0]
            return cls((held.shape[0], held.shape[1]), held.dtype, held.device, held._rebuild)
        if func._schema.is_mutable and isinstance((kwargs or {}).get("out", args[0]), cls):
            raise KernelError(
                f"the weight of a sparse layer is rebuilt for reading, and {func} would change only a copy; "
                "revert the model first, or train its values"
            )
        args, kwargs = tree_map_only(cls, lambda weight: weight._rebuild(), (args, kwargs or {}))
        return func(*args, **kwargs)

    def numpy(self, *, force: bool = False) -> Any:
        """The rebuilt weight as an array."""
        return self._rebuild().numpy(force=force)

    def tolist(self) -> Any:
        """The rebuilt weight as nested lists."""
        return self._rebuild().tolist()

    def data_ptr(self) -> int:
        """Refused: there is no memory to point at."""
        raise KernelError("the weight of a sparse layer has no memory of its own; clone() it first")

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        return self._rebuild()

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self._rebuild().__reduce_ex__(protocol)

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return repr(self._rebuild())
