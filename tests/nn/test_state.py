"""state_dict: canonical for frozen and trainable layers, and everything that comes in is checked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ajour.nn import SparseLinear, linear_of
from ajour.terms.pattern import NM, Block, Dense, Pattern, Unstructured
from pruned import bits, keep_mask, matrix_of

PATTERNS = (NM(2, 4), NM(3, 5), Block(4, 4), Unstructured())


def layer(pattern: Pattern, trainable: bool = False, dtype: torch.dtype = torch.float32) -> SparseLinear:
    w = torch.where(keep_mask(pattern, 24, 35), torch.randn(24, 35), 0.0).to(dtype)
    return linear_of(matrix_of(w, pattern), torch.randn(24, dtype=dtype), trainable=trainable)


def clones(module: nn.Module) -> dict[str, Any]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("source", [False, True], ids=["from frozen", "from trainable"])
@pytest.mark.parametrize("target", [False, True], ids=["to frozen", "to trainable"])
@pytest.mark.parametrize("assign", [False, True], ids=["copied", "assigned"])
def test_each_kind_loads_what_each_kind_saves(pattern: Pattern, source: bool, target: bool, assign: bool) -> None:
    a, b = layer(pattern, source), layer(pattern, target)
    assert list(a.state_dict()) == list(b.state_dict()) == [*type(a.matrix()).NAMES, "bias"]
    parameters = [id(p) for p in b.parameters()]
    b.load_state_dict(a.state_dict(), assign=assign)
    assert b.trainable is target
    assert torch.equal(bits(a.matrix().to_dense()), bits(b.matrix().to_dense()))
    x = torch.randn(3, 35)
    torch.testing.assert_close(a(x), b(x))
    trained = [type(a.matrix()).NAMES[0], "bias"] if target else []
    assert [name for name, p in b.named_parameters() if p.requires_grad] == trained
    if not assign:
        assert [id(p) for p in b.parameters()] == parameters
        before = bits(a.matrix().to_dense()).clone()
        with torch.no_grad():
            for tensor in [*b.parameters(), *b.buffers()]:
                tensor.zero_()
        assert torch.equal(bits(a.matrix().to_dense()), before), "a copy was asked for"


def test_a_dense_layer_is_saved_as_torch_saves_it() -> None:
    module, twin = layer(Dense()), nn.Linear(35, 24)
    twin.load_state_dict(module.state_dict())
    x = torch.randn(2, 35)
    torch.testing.assert_close(twin(x), module(x))
    module.load_state_dict(nn.Linear(35, 24).state_dict())


def test_values_come_in_the_dtype_of_the_layer() -> None:
    a, b = layer(NM(2, 4)), layer(NM(2, 4), dtype=torch.bfloat16)
    b.load_state_dict(a.state_dict())
    assert b.dtype is b.bias.dtype is torch.bfloat16
    assert torch.equal(b.matrix().to_dense(), a.matrix().to_dense().bfloat16())
    b.load_state_dict(a.state_dict(), assign=True)
    assert b.dtype is b.bias.dtype is torch.float32


def test_new_values_alone_keep_the_places() -> None:
    module = layer(NM(2, 4))
    values = module.state_dict()["values"]
    answer = module.load_state_dict({"values": 2 * values}, strict=False)
    assert set(answer.missing_keys) == {"positions", "bias"}
    assert torch.equal(module.state_dict()["values"], 2 * values)


@pytest.mark.parametrize("trainable", [False, True])
def test_what_is_missing_or_too_much_is_named(trainable: bool) -> None:
    model = nn.Sequential(layer(Block(4, 4), trainable))
    state = clones(model)
    del state["0.columns"]
    state["0.mask"] = torch.ones(1)
    with pytest.raises(RuntimeError, match=r'Missing key\(s\) in state_dict: "0.columns"') as failure:
        model.load_state_dict(state)
    assert 'Unexpected key(s) in state_dict: "0.mask"' in str(failure.value)


def other_shape(t: Tensor) -> Tensor:
    return torch.cat([t, t])


def too_large(t: Tensor) -> Tensor:
    return torch.full_like(t, torch.iinfo(t.dtype).max)


def negative(t: Tensor) -> Tensor:
    return -t - 1


def floats(t: Tensor) -> Tensor:
    return t.float()


def no_tensor(t: Tensor) -> list[int]:
    return [1, 2]


HOSTILE = [
    (NM(2, 4), "positions", too_large), (NM(2, 4), "positions", other_shape), (NM(2, 4), "positions", floats),
    (NM(3, 5), "positions", torch.zeros_like), (NM(2, 4), "values", other_shape), (NM(2, 4), "values", Tensor.long),
    (NM(2, 4), "values", no_tensor), (Block(4, 4), "columns", too_large), (Block(4, 4), "columns", negative),
    (Block(4, 4), "rows", too_large), (Block(4, 4), "row_offsets", too_large), (Block(4, 4), "row_offsets", negative),
    (Block(4, 4), "order", too_large), (Block(4, 4), "column_offsets", floats), (Block(4, 4), "blocks", other_shape),
    (Unstructured(), "bitmaps", too_large), (Unstructured(), "bitmaps", floats),
    (Unstructured(), "offsets", too_large), (Unstructured(), "offsets", negative),
    (Unstructured(), "values", other_shape),
]  # fmt: skip


@pytest.mark.parametrize(("pattern", "name", "damage"), HOSTILE, ids=lambda v: getattr(v, "__name__", str(v)))
@pytest.mark.parametrize("trainable", [False, True])
def test_a_hostile_state_changes_nothing(
    pattern: Pattern, name: str, damage: Callable[[Tensor], Any], trainable: bool
) -> None:
    model = nn.ModuleDict({"fc": layer(pattern, trainable)})
    before, state = clones(model), clones(layer(pattern))
    state = {f"fc.{key}": tensor for key, tensor in state.items()}
    state[f"fc.{name}"] = damage(state[f"fc.{name}"])
    with pytest.raises(RuntimeError, match=rf"fc: (.*{name}|columns: expected|block \d+ at row -?\d+)"):
        model.load_state_dict(state)
    del before["fc.bias"]  # nn.Module loads what it can
    assert all(torch.equal(bits(tensor), bits(model.state_dict()[key])) for key, tensor in before.items())


def test_meta_needs_assign() -> None:
    module = layer(NM(2, 4))
    state = clones(module)
    del state["bias"]
    with pytest.raises(RuntimeError, match="the module is on meta; load with assign=True"):
        module.to("meta").load_state_dict(state)
