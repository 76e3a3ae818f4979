"""The one place that speaks torch.library: defines an op from its KERNELS table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.functional import linear

from ajour._native import native
from ajour.formats.matrix import SparseMatrix
from ajour.memory import HOST
from ajour.ops.border import FLOATING, check_call, check_devices
from ajour.ops.compiled import FLOATS, CompiledRun
from ajour.ops.dense import apply_activation
from ajour.ops.watchers import dispatch_modes, has_transforms, is_compiling, tracing_state
from ajour.terms.errors import KernelError
from ajour.terms.kernel import Kernel
from ajour.terms.problem import ACTIVATIONS, Problem
from ajour.terms.row_table import RowEntry, RowTable, parse_row_table

# define + impl costs 2.7 µs a call where custom_op costs 4.3 (Zen 5, torch 2.13)
LIBRARY = torch.library.Library("ajour", "DEF")

SCHEMA = "(Tensor x, Tensor[] packed, Tensor? bias, str kernels, str activation, Tensor? residual=None) -> Tensor"


@dataclass(frozen=True)
class LinearOp:
    """An op y: [..., n] = activation(x: [..., k] @ w.T + bias: [n]) + residual, its format and its kernels by name."""

    name: str
    matrix: type[SparseMatrix]
    kernels: dict[str, Kernel]
    registered: Callable[..., Tensor]  # as torch knows it: takes every call, and what is compiled, exported or traced
    compiled: Callable[..., Tensor | None]  # csrc/torch_abi/linear_op.h; None is "not this one"
    compiled_tables: set[str] = field(default_factory=set)  # that the compiled part was told

    def kernel(self, name: str) -> Kernel:
        """The kernel of that name; raises KernelError."""
        if name not in self.kernels:
            raise KernelError(f"{self.name} has no kernel {name!r}; it has {', '.join(self.kernels)}")
        return self.kernels[name]

    def first(self, problem: Problem) -> Kernel:
        """The first kernel of the table that takes the problem; raises KernelError with every refusal."""
        refusals = []
        for kernel in self.kernels.values():
            reason = kernel.why_not(problem)
            if reason is None:
                return kernel
            refusals.append(f"{kernel.name}: {reason}")
        raise KernelError(f"{self.name} has no kernel for {problem}; " + "; ".join(refusals))

    def call(
        self,
        x: Tensor,
        packed: list[Tensor],
        bias: Tensor | None,
        kernels: str,
        activation: str,
        residual: Tensor | None = None,
    ) -> Tensor:
        """The op, without gradients: by the compiled part where that can take the call and nobody watches.

        Under torch.func's transforms and in forward mode, which no op of ours knows, it is torch's dense product.
        """
        if not is_compiling():
            if forward_ad._current_level >= 0 or has_transforms():  # is_transformed, without a call
                return self.by_weight(x, packed, bias, kernels, activation, residual)
            if (
                kernels in self.compiled_tables
                and x.__class__ is Tensor
                and not dispatch_modes()
                and tracing_state() is None
            ):
                y = self.compiled(x, packed, bias, kernels, activation, residual)
                if y is not None:
                    return y
        return self.registered(x, packed, bias, kernels, activation, residual)

    def by_weight(
        self,
        x: Tensor,
        packed: list[Tensor],
        bias: Tensor | None,
        kernels: str,
        activation: str,
        residual: Tensor | None = None,
    ) -> Tensor:
        """The same by operations of torch alone, on the dense weight."""
        with torch._C._DisableFuncTorch():  # type: ignore[attr-defined,no-untyped-call]
            w = self.weight(packed, kernels)
        y = apply_activation(linear(x, w, bias), activation)
        return y if residual is None else y + residual

    @property
    def weight(self) -> Callable[..., Tensor]:
        """(packed, kernels) -> the dense weight [n, k], bit for bit; an op, so that a compiled backward can call it."""
        registered: Callable[..., Tensor] = getattr(torch.ops.ajour, f"{self.name}_weight").default
        return registered


def define_linear(name: str, matrix: type[SparseMatrix], kernels: Sequence[Kernel]) -> LinearOp:
    """Registers `ajour::name` for CPU and CUDA, with its fake and its autocast rule, and `ajour::name_weight`."""
    LIBRARY.define(name + SCHEMA, tags=(torch.Tag.pt2_compliant_tag,))
    registered: Callable[..., Tensor] = getattr(torch.ops.ajour, name).default
    LIBRARY.define(f"{name}_compiled{SCHEMA}?")
    overload: Any = getattr(torch.ops.ajour, f"{name}_compiled").default
    compiled = getattr(overload, "_op", overload)  # what it calls: 0.2 µs less (Zen 5, torch 2.13)
    op = LinearOp(name, matrix, {kernel.name: kernel for kernel in kernels}, registered, compiled)

    @cache
    def table_of(text: str) -> RowTable:
        table = parse_row_table(text)
        for entry in table.entries:
            op.kernel(entry.kernel)
        if table.dtype not in FLOATING:
            raise KernelError(f"{name} has no weights of dtype {table.dtype!r}; expected {', '.join(FLOATING)}")
        return table

    run = _implementation(op, table_of)

    def run_on_cuda(x: Tensor, packed: list[Tensor], bias: Tensor | None, *rest: Any) -> Tensor:
        check_devices(name, x, [*packed, bias, *rest[2:]])
        return run(x, packed, bias, *rest)

    # "CPU" never sees a tensor of another device: the dispatcher prefers that device's key
    LIBRARY.impl(name, run, "CPU")
    LIBRARY.impl(name, run_on_cuda, "CUDA")
    _register_fake(op, table_of)
    _register_autocast(op)
    _register_compiled(op)
    _register_weight(op, table_of)
    return op


def _register_compiled(op: LinearOp) -> None:
    """The compiled op is the compiled part's on a CPU; everywhere else it takes nothing."""
    native.implement_linear(op.name, ACTIVATIONS)
    for key in ("CUDA", "Meta", "AutocastCPU", "AutocastCUDA"):
        LIBRARY.impl(f"{op.name}_compiled", lambda *args: None, key)


def _compiled(kernel: Kernel, entry: RowEntry) -> Any:
    run = kernel.run
    if not isinstance(run, CompiledRun) or entry.dtype not in FLOATS or entry.stop - entry.start != run.tensors:
        return None
    return run.compiled(entry)


def _tell_compiled_part(op: LinearOp, table: RowTable) -> None:
    """From now on it takes calls with this table, for rows that a kernel with a compiled function serves."""
    entries = [
        (limit, entry.start, entry.stop, _compiled(op.kernels[entry.kernel], entry))
        for limit, entry in zip(table.limits, table.entries, strict=True)
    ]
    if any(compiled is not None for *_, compiled in entries):
        native.add_linear_table(op.name, str(table), table.n, table.k, FLOATS[table.dtype], table.needs, entries)
        op.compiled_tables.add(str(table))


def _implementation(op: LinearOp, table_of: Callable[[str], RowTable]) -> Callable[..., Tensor]:
    kernel_of, told = op.kernels, set[str]()

    def run(
        x: Tensor,
        packed: list[Tensor],
        bias: Tensor | None,
        kernels: str,
        activation: str,
        residual: Tensor | None = None,
    ) -> Tensor:
        table = table_of(kernels)
        shape = x.shape
        check_call(op.name, table, x, shape, packed, bias, activation, residual)
        if kernels not in told:
            _tell_compiled_part(op, table)
            told.add(kernels)
        if not (table.n and table.k and x.numel()):
            return _without_products(x, table.n, bias, activation, residual)
        m = x.numel() // table.k
        if bias is not None and not bias.is_contiguous():
            bias = bias.contiguous()
        if residual is not None:
            residual = residual.reshape(m, table.n).contiguous()
        entry = table.at(m)
        tensors, kernel = packed[entry.start : entry.stop], kernel_of[entry.kernel]
        if len(shape) == 2:
            return kernel.run(x, tensors, bias, residual, activation, entry)  # type: ignore[no-any-return]
        y: Tensor = kernel.run(x.reshape(m, table.k), tensors, bias, residual, activation, entry)
        # 0.3 µs less than the general form (Zen 5, torch 2.13), for the usual [batch, tokens, k]
        return y.view(shape[0], shape[1], table.n) if len(shape) == 3 else y.view(*shape[:-1], table.n)

    return run


def _register_fake(op: LinearOp, table_of: Callable[[str], RowTable]) -> None:
    def fake(
        x: Tensor,
        packed: list[Tensor],
        bias: Tensor | None,
        kernels: str,
        activation: str,
        residual: Tensor | None = None,
    ) -> Tensor:
        table = table_of(kernels)
        check_call(op.name, table, x, x.shape, packed, bias, activation, residual)
        check_devices(op.name, x, [*packed, bias, residual])
        return x.new_empty((*x.shape[:-1], table.n))

    torch.library.register_fake(f"ajour::{op.name}", fake, lib=LIBRARY)


def _without_products(x: Tensor, n: int, bias: Tensor | None, activation: str, residual: Tensor | None) -> Tensor:
    """No rows, no out features or no in features: nothing that a kernel would have to multiply."""
    y = apply_activation(linear(x, x.new_zeros(n, x.shape[-1]), bias), activation)
    return y if residual is None else y + residual


def _register_autocast(op: LinearOp) -> None:
    """Under autocast x is brought to the weight's dtype and y to autocast's, as a packed weight can't change its own.

    As with torch's own linear, float64 takes no part in it.
    """
    for device in ("CPU", "CUDA"):
        key = f"Autocast{device}"
        keys = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))

        def autocast(
            x: Tensor,
            packed: list[Tensor],
            bias: Tensor | None,
            kernels: str,
            activation: str,
            residual: Tensor | None = None,
            keys: Any = keys,
        ) -> Tensor:
            name = parse_row_table(kernels).dtype
            with torch._C._ExcludeDispatchKeyGuard(keys):
                if name == "float64" or name not in FLOATING:
                    return op.registered(x, packed, bias, kernels, activation, residual)
                x = x.to(FLOATING[name])
                bias, residual = (None if t is None else t.to(x.dtype) for t in (bias, residual))
                y = op.registered(x, packed, bias, kernels, activation, residual)
            return y.to(torch.get_autocast_dtype(x.device.type))

        LIBRARY.impl(op.name, autocast, key)


def _register_weight(op: LinearOp, table_of: Callable[[str], RowTable]) -> None:
    def weight(packed: list[Tensor], kernels: str) -> Tensor:
        table = table_of(kernels)
        entry = table.entries[0]
        kernel, tensors = op.kernels[entry.kernel], packed[entry.start : entry.stop]
        with torch.device(HOST):  # _C writes what it unpacks: torch.set_default_device may say otherwise
            dense: Tensor = kernel.unpack(tensors, table.pattern, (table.n, table.k)).to_dense()
        return dense

    def fake(packed: list[Tensor], kernels: str) -> Tensor:
        table = table_of(kernels)
        return packed[0].new_empty((table.n, table.k), dtype=FLOATING[table.dtype])

    LIBRARY.define(f"{op.name}_weight(Tensor[] packed, str kernels) -> Tensor", tags=(torch.Tag.pt2_compliant_tag,))
    LIBRARY.impl(f"{op.name}_weight", weight, "CompositeExplicitAutograd")
    torch.library.register_fake(f"ajour::{op.name}_weight", fake, lib=LIBRARY)
