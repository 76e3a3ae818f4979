"""Layers that hold a matrix: what they compute, what they hold, and how they move."""

from __future__ import annotations

import copy
from collections.abc import Callable
from io import BytesIO

import pytest
import torch
from torch import Tensor, nn

from ajour.formats import SparseMatrix
from ajour.nn import BitmapLinear, BlockLinear, DenseLinear, NMLinear, SparseLinear, SplitLinear, linear_of
from ajour.ops import LINEAR_OPS
from ajour.ops.calls import count_calls
from ajour.ops.functional import problem_of
from ajour.terms.errors import KernelError
from ajour.terms.pattern import NM, Block, Dense, Pattern, Unstructured
from ajour.terms.row_table import parse_row_table
from pruned import Split, bits, keep_mask, matrix_of, truth

SPARSE = (NM(2, 4), NM(3, 5), Block(4, 4), Unstructured())
PATTERNS = (*SPARSE, Split(), Dense())
KINDS = [(pattern, False) for pattern in PATTERNS] + [(pattern, True) for pattern in SPARSE]
each_kind = pytest.mark.parametrize(("pattern", "trainable"), KINDS, ids=str)


def drawn(pattern: Pattern, n: int = 24, k: int = 35, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.where(keep_mask(pattern, n, k), torch.randn(n, k), 0.0).to(dtype)


def layer(pattern: Pattern, trainable: bool = False, **options: object) -> tuple[SparseLinear, Tensor]:
    w = drawn(pattern)
    made = linear_of(matrix_of(w, pattern), torch.randn(len(w)), trainable=trainable, **options)  # type: ignore[arg-type]
    return made, w


@each_kind
@pytest.mark.parametrize("activation", ["none", "gelu"])
def test_a_layer_computes_what_its_dense_twin_does(pattern: Pattern, trainable: bool, activation: str) -> None:
    module, w = layer(pattern, trainable, activation=activation)
    for shape in ((3, 5, 35), (1, 35), (35,), (0, 35)):
        x = torch.randn(shape)
        with torch.no_grad(), count_calls() as calls:
            y = module(x)
        assert calls.ops == {module.op.name: 1}
        assert y.shape == (*shape[:-1], 24)
        rows = x.reshape(-1, 35)
        truth(rows, w, module.bias.detach(), None, activation).check(y.reshape(-1, 24), str(module))


def test_each_format_has_its_module() -> None:
    kinds = {type(linear_of(matrix_of(drawn(pattern), pattern))) for pattern in PATTERNS}
    assert kinds == {NMLinear, BlockLinear, BitmapLinear, SplitLinear, DenseLinear}


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_every_kernel_that_takes_a_layer_serves_it(pattern: Pattern) -> None:
    w, bias, x = drawn(pattern, 64, 128), torch.randn(64), torch.randn(9, 128)
    matrix = matrix_of(w, pattern)
    served = []
    for name, kernel in LINEAR_OPS[linear_of(matrix).op.name].kernels.items():
        if kernel.why_not(problem_of(matrix, 9)) is None:
            module = linear_of(matrix, bias, choices=[(None, name, kernel.configs(problem_of(matrix, 9))[0])])
            with count_calls() as calls:
                y = module(x.requires_grad_())
            assert calls.kernels == {(module.op.name, name): 1}
            truth(x.detach(), w, bias, None, "none").check(y.detach(), name)
            assert torch.equal(bits(module.matrix().to_dense()), bits(w))
            (dx,) = torch.autograd.grad(y.sum(), x)
            torch.testing.assert_close(dx, w.sum(0).expand_as(x))
            served.append(name)
    assert len(served) >= 2


def test_a_layer_may_be_sparse_for_few_rows_and_dense_above() -> None:
    module, w = layer(NM(2, 4), choices=[(8, "reference", ""), (None, "aten", "")])
    with count_calls() as calls:
        for m in (1, 8, 9, 100):
            truth(x := torch.randn(m, 35), w, module.bias, None, "none").check(module(x).detach(), f"{m} rows")
    assert calls.kernels == {("nm_linear", "reference"): 2, ("nm_linear", "aten"): 2}
    assert "kernels: reference to 8 rows, aten" in repr(module)


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_a_frozen_layer_holds_only_what_its_kernels_read(pattern: Pattern) -> None:
    module, _ = layer(pattern)
    assert [name for name, _ in module.named_parameters()] == ["bias"]
    held = list(module.buffers())
    assert held
    assert all(name.startswith("packed_") for name, _ in module.named_buffers())
    canonical = linear_of(module.matrix(), choices=[(None, "aten" if pattern == Dense() else "reference", "")])
    assert len(list(canonical.buffers())) == len(type(module.matrix()).NAMES)


@pytest.mark.parametrize("pattern", SPARSE, ids=str)
def test_a_trainable_layer_holds_the_canonical_form_as_parameters(pattern: Pattern) -> None:
    module, w = layer(pattern, trainable=True)
    names = type(module.matrix()).NAMES
    assert [name for name, _ in module.named_parameters()] == [*names, "bias"]
    assert [name for name, p in module.named_parameters() if p.requires_grad] == [names[0], "bias"]
    assert not list(module.buffers())
    module.requires_grad_(False).requires_grad_(True)
    assert [name for name, p in module.named_parameters() if p.requires_grad] == [names[0], "bias"]
    x = torch.randn(6, 35)
    dense = w.clone().requires_grad_()
    torch.nn.functional.linear(x, dense, module.bias).square().sum().backward()
    wanted = [dense.grad, module.bias.grad]
    module.zero_grad()
    module(x).square().sum().backward()
    gradient = module.op.matrix(
        {**module.matrix().tensors(), names[0]: getattr(module, names[0]).grad}, module.pattern, w.shape
    )
    live = matrix_of(torch.ones_like(w).where(w != 0, 0.0), pattern).to_dense() != 0
    torch.testing.assert_close(gradient.to_dense()[live], wanted[0][live])  # type: ignore[index]
    torch.testing.assert_close(module.bias.grad, wanted[1])


@pytest.mark.parametrize("pattern", SPARSE, ids=str)
def test_an_optimizer_over_all_parameters_trains_the_values_alone(pattern: Pattern) -> None:
    module, w = layer(pattern, trainable=True)
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.1)
    zeros = w == 0
    for _ in range(3):
        optimizer.zero_grad()
        module(torch.randn(6, 35)).square().mean().backward()
        optimizer.step()
    after = module.matrix().to_dense()
    assert bool((after != w)[~zeros].all())
    module.matrix().validate()
    if isinstance(pattern, Unstructured):
        assert not bool(after[zeros].any())


@each_kind
def test_a_copy_shares_nothing(pattern: Pattern, trainable: bool) -> None:
    module, w = layer(pattern, trainable)
    file = BytesIO()
    torch.save(module, file)
    file.seek(0)
    for twin in (copy.deepcopy(module), torch.load(file, weights_only=False)):
        x = torch.randn(4, 35)
        assert torch.equal(twin(x), module(x))
        with torch.no_grad():
            for tensor in [*module.parameters(), *module.buffers()]:
                assert all(tensor.data_ptr() != t.data_ptr() for t in [*twin.parameters(), *twin.buffers()])
        assert torch.equal(bits(twin.matrix().to_dense()), bits(w))
        assert twin.trainable is trainable


@each_kind
@pytest.mark.parametrize("move", [nn.Module.half, nn.Module.bfloat16, nn.Module.double], ids=lambda f: f.__name__)
def test_a_dtype_changes_values_and_nothing_else(
    pattern: Pattern, trainable: bool, move: Callable[[nn.Module], nn.Module]
) -> None:
    module, w = layer(pattern, trainable)
    parameter = next(module.parameters())
    assert move(module) is module
    dtype = module.bias.dtype
    assert module.dtype is dtype is not torch.float32
    assert torch.equal(bits(module.matrix().to_dense()), bits(w.to(dtype)))
    module.matrix().validate()
    x = torch.randn(5, 35).to(dtype)
    truth(x, w.to(dtype), module.bias.detach(), None, "none").check(module(x).detach(), str(module))
    assert next(module.parameters()) is parameter, "optimizers know parameters by identity"


@each_kind
def test_casting_everything_leaves_indices_alone(pattern: Pattern, trainable: bool) -> None:
    module, w = layer(pattern, trainable)
    module.type(torch.float64)
    module.matrix().validate()
    assert torch.equal(module.matrix().to_dense(), w.double())


@pytest.mark.filterwarnings("ignore:Complex modules")
def test_a_dtype_that_no_format_holds_is_refused() -> None:
    with pytest.raises(KernelError, match=r"NMLinear holds float32, .*can't become torch.complex64"):
        layer(NM(2, 4))[0].to(torch.complex64)


def test_the_wanted_kernels_serve_again_after_a_detour() -> None:
    module, _ = layer(NM(2, 4), choices=[(None, "onednn", "")])
    assert "aten" in module.half().kernels or "onednn" not in module.kernels
    assert module.float().kernels.endswith("* onednn 0:1")
    assert module.to("meta").to_empty(device="cpu").kernels.endswith("reference 0:2")


@each_kind
def test_meta_has_shapes_and_no_memory(pattern: Pattern, trainable: bool) -> None:
    module, w = layer(pattern, trainable)
    state = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    module.requires_grad_(True).to("meta").requires_grad_(True)
    assert {name: tensor.shape for name, tensor in module.state_dict().items()} == {
        n: t.shape for n, t in state.items()
    }
    assert all(t.is_meta for t in [*module.parameters(), *module.buffers()])
    assert module(torch.empty(3, 35, device="meta")).shape == (3, 24)
    with pytest.raises(NotImplementedError, match="Cannot copy out of meta tensor"):
        module.to("cpu")
    loaded = copy.deepcopy(module)
    loaded.load_state_dict(state, assign=True)
    module.to_empty(device="cpu")
    module.load_state_dict(state)
    for there in (loaded, module):
        assert torch.equal(bits(there.matrix().to_dense()), bits(w))
        truth(x := torch.randn(3, 35), w, there.bias.detach(), None, "none").check(there(x).detach(), "loaded")


@each_kind
def test_sharing_memory_moves_nothing(pattern: Pattern, trainable: bool) -> None:
    module, w = layer(pattern, trainable)
    module.share_memory()
    assert all(t.is_shared() for t in [*module.parameters(), *module.buffers()])
    assert torch.equal(bits(module.matrix().to_dense()), bits(w))


@each_kind
def test_autocast_is_respected(pattern: Pattern, trainable: bool) -> None:
    module, w = layer(pattern, trainable)
    x = torch.randn(4, 35, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = module(x)
    assert y.dtype is torch.bfloat16
    torch.testing.assert_close(y.float(), nn.functional.linear(x, w, module.bias), atol=0.05, rtol=0.02)
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.dtype is torch.float32


@pytest.mark.unpoisoned
@each_kind
def test_a_layer_is_one_node_with_any_number_of_rows(pattern: Pattern, trainable: bool) -> None:
    torch._dynamo.reset()  # or each case counts as one more recompilation
    module, _ = layer(pattern, trainable)
    x = torch.randn(4, 35)
    program = torch.export.export(module, (x,), dynamic_shapes=({0: torch.export.Dim("m")},))
    called = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert called == [f"ajour.{module.op.name}.default"]
    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend="aot_eager")
    for m in (4, 9, 1):
        x = torch.randn(m, 35)
        assert torch.equal(compiled(x), module(x))
        assert torch.equal(program.module()(x), module(x))


def test_a_layer_says_what_it_is() -> None:
    text = repr(layer(NM(2, 4), activation="silu")[0])
    for part in ("NMLinear(in_features=35, out_features=24, bias=True, 2:4, density=0.4", "activation=silu", "frozen"):
        assert part in text
    assert repr(linear_of(matrix_of(drawn(Block(4, 4)), Block(4, 4)), trainable=True)).endswith(
        "trainable, kernels: cpu_blocks)"
    )


def test_bad_arguments_are_refused_by_name() -> None:
    held: SparseMatrix = matrix_of(drawn(NM(2, 4)), NM(2, 4))
    with pytest.raises(KernelError, match="BlockLinear holds a BlockMatrix, found a NMMatrix"):
        BlockLinear(held)
    with pytest.raises(KernelError, match=r"expected a bias \(24,\) torch.float32 on cpu, found \(23,\)"):
        NMLinear(held, torch.randn(23))
    with pytest.raises(KernelError, match="activation 'tanh' is not one of none, relu"):
        NMLinear(held, activation="tanh")
    with pytest.raises(KernelError, match="nm_linear has no kernel 'magic'"):
        NMLinear(held, choices=[(None, "magic", "")])
    with pytest.raises(KernelError, match="nm_linear: kernel 'onednn' refuses it: oneDNN takes float32"):
        NMLinear(held.to(dtype=torch.float16), choices=[(None, "onednn", "")])
    with pytest.raises(KernelError, match="DenseLinear is for inference"):
        DenseLinear(matrix_of(drawn(Dense()), Dense()), trainable=True)


def test_a_trained_layer_obeys_a_choice_of_kernels_that_read_its_values() -> None:
    matrix = matrix_of(drawn(Block(4, 4)), Block(4, 4))
    for choices, served in (
        ([(8, "reference", ""), (None, "cpu_blocks", "")], ["reference", "cpu_blocks"]),
        ([(None, "cpu", "")], ["cpu_blocks"]),  # for inference: it packs the values
        (None, ["cpu_blocks"]),
    ):
        module = linear_of(matrix, choices=choices, trainable=True)
        assert [entry.kernel for entry in parse_row_table(module.kernels).entries] == served
        for m in (3, 20):
            x = torch.randn(m, module.in_features, requires_grad=True)
            dx, dblocks = torch.autograd.grad(module(x).sum(), (x, module.get_parameter("blocks")))
            assert torch.allclose(dx, module.weight.detach().sum(0).expand_as(dx), atol=1e-4)
            assert dblocks.shape == matrix.tensors()["blocks"].shape
    doubled = linear_of(matrix, choices=[(None, "cpu_blocks", "")], trainable=True).double()
    assert parse_row_table(doubled.kernels).entries[0].kernel == "reference", "cpu_blocks takes no float64"


def test_a_layer_is_called_by_keyword_as_the_one_it_stands_for() -> None:
    x = torch.randn(3, 8)
    layer = NMLinear(matrix_of(torch.where(keep_mask(NM(2, 4), 6, 8), torch.randn(6, 8), 0.0), NM(2, 4)))
    assert torch.equal(layer(input=x), layer(x))
