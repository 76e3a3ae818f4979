"""SparseLinear: a linear layer that holds a matrix, names its kernels and calls one op."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ajour import huge_pages
from ajour.formats.matrix import DTYPES, SparseMatrix
from ajour.nn.selection import canonical_choice, select, why_not
from ajour.nn.weight import Looks, Weight, read_of, refusal
from ajour.ops.gradients import EXPAND, linear
from ajour.ops.library import LinearOp
from ajour.ops.prepare import Choice, prepare, restore
from ajour.terms.errors import AjourError, FormatError, KernelError
from ajour.terms.problem import ACTIVATIONS
from ajour.terms.row_table import parse_row_table


class Index(nn.Parameter):
    """An index tensor among the parameters, where DDP and FSDP2 see it; `model.requires_grad_()` passes it by."""

    def requires_grad_(self, requires_grad: bool = True) -> Index:
        """Does nothing: integers have no gradient."""
        return self


class SparseLinear(nn.Module):
    """y: [..., n] = activation(x: [..., k] @ matrix.T + bias: [n]); subclasses name the op.

    A frozen module holds, as buffers, only what its kernels read; a trainable one holds the canonical form, its values
    a parameter and its indices parameters that are never trained, and runs through a kernel that reads it. The
    state_dict is canonical for both and loads into both. A change of dtype or device goes through the canonical form,
    and the kernels in `choices` serve again wherever they take the new problem.

    choices: (largest number of rows or None, kernel, configuration), in rising order; None takes the first kernel of
    the op's table that takes this matrix. Raises KernelError if a kernel refuses it.
    """

    op: ClassVar[LinearOp]

    def __init__(
        self,
        matrix: SparseMatrix,
        bias: Tensor | None = None,
        *,
        choices: Sequence[Choice] | None = None,
        activation: str = "none",
        trainable: bool = False,
    ) -> None:
        super().__init__()
        self._check(matrix, bias, activation, trainable)
        self.out_features, self.in_features = matrix.shape
        self.pattern = matrix.pattern
        self.activation = activation
        self.trainable = trainable
        self.origin: Any = None  # what this layer was converted from; conversion sets and reads it
        self.transposed = False  # whether that is a Conv1D, whose own weight is [k, n]; conversion sets it
        self.choices = None if choices is None else tuple(choices)
        if choices is not None and (refusal := why_not(self.op, matrix, activation, choices)):
            raise KernelError(f"{self.op.name}: {refusal}")
        self._names: tuple[str, ...] = ()
        self._hold(matrix)
        if bias is not None and not isinstance(bias, nn.Parameter):
            bias = nn.Parameter(bias, requires_grad=trainable)
        self.register_parameter("bias", bias)

    def forward(self, input: Tensor) -> Tensor:
        """activation(input: [..., k] @ matrix.T + bias) of input's dtype, which is the weight's except under autocast.

        Its name is that of nn.Linear, as models may say `layer(input=x)`.
        """
        held = self._parameters if self.trainable else self._buffers
        packed: list[Any] = [held[name] for name in self._names]
        return linear(self.op, input, packed, self._parameters["bias"], self.kernels, self.activation)

    def matrix(self) -> SparseMatrix:
        """The weight in its canonical form, bit for bit; it may share memory with this module."""
        tensors = [tensor.detach() for tensor in self._packed().values()]
        if self.trainable or self.device.type == "meta":  # they hold the canonical form itself
            shape = (self.out_features, self.in_features)
            return self.op.matrix(dict(zip(self.op.matrix.NAMES, tensors, strict=True)), self.pattern, shape)
        return restore(self.op, tensors, self.kernels)

    @property
    def weight(self) -> Tensor:
        """The dense weight [n, k], read-only; rebuilt when its values are used, differentiable if trainable.

        [k, n] where the layer stands for a Conv1D, whose own is. Whatever would write to it raises KernelError. What
        can't be caught: a tensor of a frozen layer's state_dict() is a copy that `load_state_dict` takes back, and
        `_parameters["weight"] = ...` adds what nothing reads.
        """
        shape, compiling = (self.out_features, self.in_features), torch.compiler.is_compiling()
        if not self.trainable:
            if compiling:  # an op, which falls away where only its dtype was asked for
                return self._turned(self.op.weight(list(self._packed().values()), self.kernels))
            return Weight(self._title, self._looks(), lambda: self._turned(self.matrix().to_dense()))
        values, *rest = self._packed().values()
        expand = EXPAND[self.op.name]

        def read(values: Tensor) -> Tensor:
            return self._turned(expand([values, *rest], self.pattern, shape))

        return read(values) if compiling else read_of(self._title, self._looks(), values, read)

    @weight.setter
    def weight(self, value: Tensor) -> None:
        raise refusal(self._title, "setting it")

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """As nn.Module's, but KernelError where a weight, or a masked original of one (`weight_orig`), is put here."""
        masked = (f"{held}_orig" for held in ("weight", "bias", *self.op.matrix.NAMES))
        if name in ("weight", *masked):
            raise refusal(self._title, f"registering the parameter {name!r}")
        super().register_parameter(name, param)

    def _looks(self) -> Looks:
        n, k = self.out_features, self.in_features
        return Looks((k, n) if self.transposed else (n, k), self.dtype, self.device)

    def _turned(self, w: Tensor) -> Tensor:
        return w.t().contiguous() if self.transposed else w

    def _title(self) -> str:
        return f"this {type(self).__name__} ({self.in_features} -> {self.out_features} features)"

    @property
    def dtype(self) -> torch.dtype:
        """Of the weight."""
        dtype: torch.dtype = getattr(torch, parse_row_table(self.kernels).dtype)
        return dtype

    @property
    def device(self) -> torch.device:
        """Of the weight."""
        return next(iter(self._packed().values())).device

    def extra_repr(self) -> str:
        """Sizes, pattern, density and kernels by rows."""
        served = [
            f"{entry.kernel} {entry.config}".rstrip() + (f" to {entry.limit} rows" if entry.limit else "")
            for entry in parse_row_table(self.kernels).entries
        ]
        parts = [f"in_features={self.in_features}, out_features={self.out_features}", f"bias={self.bias is not None}"]
        parts.append(str(self.pattern))
        parts += [] if self.density is None else [f"density={self.density:.3f}"]
        parts += [] if self.activation == "none" else [f"activation={self.activation}"]
        return ", ".join([*parts, "trainable" if self.trainable else "frozen", f"kernels: {', '.join(served)}"])

    def _check(self, matrix: SparseMatrix, bias: Tensor | None, activation: str, trainable: bool) -> None:
        name = type(self).__name__
        if type(matrix) is not self.op.matrix:
            raise KernelError(f"{name} holds a {self.op.matrix.__name__}, found a {type(matrix).__name__}")
        if activation not in ACTIVATIONS:
            raise KernelError(f"{name}: activation {activation!r} is not one of {', '.join(ACTIVATIONS)}")
        matrix.validated()  # kernels read wherever its indices point
        if trainable and "reference" not in self.op.kernels:
            raise KernelError(f"{name} is for inference; train the nn.Linear that it stands for")
        n = matrix.shape[0]
        if bias is not None and (bias.shape != (n,) or bias.dtype != matrix.dtype or bias.device != matrix.device):
            raise KernelError(
                f"{name}: expected a bias ({n},) {matrix.dtype} on {matrix.device}, "
                f"found {tuple(bias.shape)} {bias.dtype} on {bias.device}"
            )

    def __setstate__(self, state: dict[str, Any]) -> None:
        """After copy.deepcopy and pickle: what kernels stream goes back on huge pages, where packing had put it."""
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        if not self.trainable:
            for tensor in self._packed().values():
                huge_pages.settle(tensor)

    def _held(self) -> dict[str, Any]:
        held: dict[str, Any] = self._parameters if self.trainable else self._buffers
        return held

    def _packed(self) -> dict[str, Tensor]:
        held = self._held()
        return {name: held[name] for name in self._names}

    def _hold(self, matrix: SparseMatrix, selected: Sequence[Choice] | None = None) -> None:
        """Packs the matrix for `selected`, by default for the wanted kernels, and holds that instead."""
        if self.trainable:
            selected = canonical_choice(self.op, matrix, self.choices)
        elif selected is None:
            selected = select(self.op, matrix, self.activation, self.choices)
        packed, self.kernels = prepare(self.op, matrix, selected)
        self.density = None if matrix.device.type == "meta" else matrix.density
        if self.trainable:
            self._names = matrix.NAMES
            for name, tensor in matrix.tensors().items():
                self._hold_parameter(name, tensor)
            return
        for name in self._names:
            del self._buffers[name]
        self._names = tuple(f"packed_{place}" for place in range(len(packed)))
        for name, tensor in zip(self._names, packed, strict=True):
            self.register_buffer(name, tensor, persistent=False)

    def _hold_parameter(self, name: str, tensor: Tensor) -> None:
        """Keeps the parameter itself where it can, as optimizers know it by identity."""
        held = self._parameters.get(name)
        kind = nn.Parameter if tensor.is_floating_point() else Index
        if isinstance(held, kind) and held.device.type == tensor.device.type:
            held.data = tensor
        else:
            wanted = tensor.is_floating_point() and (held is None or held.requires_grad)
            self._parameters[name] = kind(tensor, requires_grad=wanted)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> SparseLinear:
        before, after = self.device, fn(torch.empty(1, dtype=self.dtype, device=self.device))
        if after.dtype not in DTYPES:
            held = ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES)
            raise KernelError(f"{type(self).__name__} holds {held}; it can't become {after.dtype}")
        if self.trainable:
            super()._apply(lambda tensor: _floats_only(fn, tensor), recurse)  # type: ignore[no-untyped-call]
            matrix = self.matrix()
        elif (after.dtype, after.device) == (self.dtype, before):
            super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
            return self
        else:
            matrix = self.matrix().to(after.device, after.dtype) if before.type != "meta" else self.matrix()
            with self._hidden():
                super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if before.type == "meta" and after.device.type != "meta":  # to_empty: no index may point anywhere
            zeros = {name: torch.zeros_like(t, device=after.device) for name, t in matrix.tensors().items()}
            empty = type(matrix)(zeros, self.pattern, matrix.shape)
            self._hold(empty, canonical_choice(self.op, empty))
        else:
            self._hold(matrix)
        return self

    @contextmanager
    def _hidden(self) -> Iterator[None]:
        """Hides the matrix from nn.Module, which would treat it tensor by tensor."""
        held = self._held()
        packed = {name: held.pop(name) for name in self._names}
        try:
            yield
        finally:
            held.update(packed)
            if self.trainable:  # the bias stays last, as optimizers number parameters
                held["bias"] = held.pop("bias")

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        if not self.trainable:
            destination.update({prefix + name: tensor for name, tensor in self.matrix().tensors().items()})
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, local_metadata: Mapping[str, Any], strict: bool,
        missing_keys: list[str], unexpected_keys: list[str], error_msgs: list[str],
    ) -> None:  # fmt: skip
        with self._hidden():
            super()._load_from_state_dict(
                state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
            )
        keys = {name: prefix + name for name in self.op.matrix.NAMES}
        unexpected_keys[:] = [key for key in unexpected_keys if key not in keys.values()]
        given = {name: state_dict[key] for name, key in keys.items() if key in state_dict}
        if strict:
            missing_keys += [key for name, key in keys.items() if name not in given]
        if given:
            try:
                self._load(given, bool(local_metadata.get("assign_to_params_buffers", False)))
            except AjourError as error:
                error_msgs.append(f"{prefix.rstrip('.')}: {error}")

    def _load(self, given: Mapping[str, Any], assign: bool) -> None:
        """Takes canonical tensors, all checked; those that are missing stay as they are."""
        if self.device.type == "meta" and not assign:
            raise FormatError("the module is on meta; load with assign=True, or move it with to_empty first")
        for name, tensor in given.items():
            if not isinstance(tensor, Tensor):
                raise FormatError(f"{name}: expected a tensor, found {type(tensor).__name__}")
        shape = (self.out_features, self.in_features)
        tensors = given if len(given) == len(self.op.matrix.NAMES) else self.matrix().tensors() | dict(given)
        tensors = {name: tensor.detach() for name, tensor in tensors.items()}
        matrix = self.op.matrix.from_tensors(tensors, self.pattern, shape)
        if not assign:
            copies = {name: tensor.to(self.device, copy=True) for name, tensor in matrix.tensors().items()}
            matrix = type(matrix)(copies, self.pattern, shape).to(dtype=self.dtype)
        self._hold(matrix)


def _floats_only(fn: Callable[[Tensor], Tensor], tensor: Tensor) -> Tensor:
    """fn, but an index keeps its dtype: `module.type(torch.float16)` would cast it too."""
    moved = fn(tensor)
    return moved if tensor.is_floating_point() or moved.dtype == tensor.dtype else tensor.to(moved.device)
