"""prune: exact counts, determinism, and what is refused."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune

from ajour.layers import find_layers
from ajour.pruning import prune
from ajour.terms.errors import ConversionError, PatternError
from ajour.terms.pattern import NM, Block, Dense, Pattern, Unstructured
from factories import conv1d

sizes = st.integers(1, 40)
dtypes = st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.float64])


def layer(n: int, k: int, dtype: torch.dtype = torch.float32, coarse: bool = False) -> nn.Sequential:
    """A layer; `coarse` rounds its weights to few values, so that most of them are ties."""
    model = nn.Sequential(nn.Linear(k, n, dtype=dtype))
    w = torch.randn(n, k, dtype=torch.float64)
    model[0].weight.data = ((w * 2).round() if coarse else w).to(dtype)
    return model


def weight(model: nn.Module) -> Tensor:
    return find_layers(model)[0].weight().clone()


@settings(max_examples=60, deadline=None)
@given(sizes, sizes, dtypes, st.booleans(), st.sampled_from([(1, 2), (2, 4), (1, 4), (4, 8), (3, 5), (31, 32)]))
def test_nm_keeps_the_largest_of_every_group(
    n: int, k: int, dtype: torch.dtype, coarse: bool, nm: tuple[int, int]
) -> None:
    model = layer(n, k, dtype, coarse)
    before = weight(model)
    prune(model, NM(*nm))
    after = weight(model)
    for row in range(n):
        for start in range(0, k, nm[1]):
            old, new = before[row, start : start + nm[1]], after[row, start : start + nm[1]]
            order = sorted(range(len(old)), key=lambda i: (-abs(float(old[i])), i))
            expected = torch.zeros_like(old)
            expected[order[: nm[0]]] = old[order[: nm[0]]]
            assert torch.equal(new, expected)


@settings(max_examples=60, deadline=None)
@given(sizes, sizes, dtypes, st.booleans(), st.floats(0, 1))
def test_unstructured_keeps_exactly_the_asked_share(
    n: int, k: int, dtype: torch.dtype, coarse: bool, density: float
) -> None:
    model = layer(n, k, dtype, coarse)
    before = weight(model).flatten()
    prune(model, Unstructured(), density=density)
    order = sorted(range(n * k), key=lambda i: (-abs(float(before[i])), i))[: round(density * n * k)]
    expected = torch.zeros_like(before)
    expected[order] = before[order]
    assert torch.equal(weight(model).flatten(), expected)


@settings(max_examples=60, deadline=None)
@given(sizes, sizes, st.sampled_from([(4, 4), (8, 1), (3, 5), (32, 32)]), st.floats(0, 1), st.booleans())
def test_blocks_live_or_die_whole_in_exact_number(
    n: int, k: int, block: tuple[int, int], density: float, balanced: bool
) -> None:
    model = layer(n, k)
    before = weight(model)
    prune(model, Block(*block), density=density, balanced=balanced)
    after = weight(model)
    r, c = block
    rows, cols = -(-n // r), -(-k // c)
    live = torch.zeros(rows, cols, dtype=torch.bool)
    for i in range(rows):
        for j in range(cols):
            old, new = (w[i * r : (i + 1) * r, j * c : (j + 1) * c] for w in (before, after))
            live[i, j] = bool(new.any())
            assert torch.equal(new, old if live[i, j] else torch.zeros_like(old))
    if balanced:
        assert live.sum(1).tolist() == [round(density * cols)] * rows
    else:
        assert int(live.sum()) == round(density * rows * cols)


def test_pruned_places_hold_positive_zero() -> None:
    model = nn.Sequential(nn.Linear(64, 64))
    model[0].weight.data = -torch.rand(64, 64) - 1
    prune(model, NM(2, 4))
    w = model[0].weight
    assert not torch.signbit(w[w == 0]).any()


def test_nan_counts_as_the_largest() -> None:
    model = layer(1, 4)
    model[0].weight.data = torch.tensor([[1.0, torch.nan, torch.inf, 3.0]])
    prune(model, NM(2, 4))
    assert (model[0].weight == 0).tolist() == [[True, False, False, True]]


def test_it_happens_in_place_on_the_same_parameter() -> None:
    model = layer(16, 16)
    before = model[0].weight
    assert prune(model, NM(2, 4)) is model
    assert model[0].weight is before
    assert before.requires_grad


def test_layers_by_glob_by_name_and_by_callable() -> None:
    for layers in (["a.*"], ["a.0", "a.1"], lambda name, module: name.startswith("a") and module.in_features == 16):
        model = nn.ModuleDict({"a": nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16)), "b": nn.Linear(16, 16)})
        prune(model, NM(1, 4), layers=layers)
        assert (model["a"][0].weight == 0).float().mean() == (model["a"][1].weight == 0).float().mean() == 0.75
        assert (model["b"].weight != 0).all()


def test_what_can_t_be_converted_is_left_alone() -> None:
    model = nn.TransformerEncoderLayer(16, 2)
    before = {name: p.clone() for name, p in model.named_parameters()}
    prune(model, NM(2, 4))
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {"linear1.weight", "linear2.weight"}


def test_conv1d_is_pruned_along_its_in_features() -> None:
    model = nn.Sequential(conv1d(24, 16))
    prune(model, NM(1, 4))
    assert (model[0].weight.view(4, 4, 24) != 0).sum(1).eq(1).all()


def test_pruning_on_top_of_a_torch_prune_mask() -> None:
    model = nn.Sequential(nn.Linear(32, 32))
    torch_prune.random_unstructured(model[0], "weight", 0.5)
    under = model[0].weight_mask == 0
    prune(model, NM(1, 4))
    stale = model[0].weight.clone()
    model(torch.randn(2, 32))
    for w in (stale, model[0].weight, weight(model)):
        assert (w[under] == 0).all()
        assert int((w.view(32, 8, 4) != 0).sum(-1).max()) == 1


@pytest.mark.parametrize(
    ("pattern", "options", "message"),
    [
        (Dense(), {}, "dense is nothing to prune to"),
        (NM(2, 4), {"density": 0.5}, "2:4 keeps 2 of 4 by itself; leave density out"),
        (Block(8, 8), {}, "block 8x8 needs density=.*found None"),
        (Unstructured(), {"density": 1.5}, "unstructured needs density=.*from 0 to 1; found 1.5"),
        (Unstructured(), {"density": float("nan")}, "found nan"),
        (Unstructured(), {"density": 0.5, "balanced": True}, "unstructured has no blocks"),
    ],
)
def test_patterns_and_options_that_don_t_go_together(pattern: Pattern, options: dict[str, float], message: str) -> None:
    with pytest.raises(PatternError, match=message):
        prune(layer(16, 16), pattern, **options)  # type: ignore[arg-type]


def test_a_named_layer_that_can_t_be_pruned_is_an_error_and_nothing_changes() -> None:
    model = nn.TransformerEncoderLayer(16, 2)
    before = {name: p.clone() for name, p in model.named_parameters()}
    with pytest.raises(ConversionError, match=r"layer 'self_attn.out_proj' can't be pruned: MultiheadAttention passes"):
        prune(model, NM(2, 4), layers=["linear1", "self_attn.out_proj"])
    with pytest.raises(ConversionError, match=r"no layer matches 'encoder.\*'; the model's layers are"):
        prune(model, NM(2, 4), layers=["linear1", "encoder.*"])
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_one_glob_may_stand_alone() -> None:
    model = prune(nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16)), NM(2, 4), layers="0")
    assert int((model[0].weight == 0).sum()) == 128
    assert not bool((model[1].weight == 0).any())


def test_a_pattern_may_be_named() -> None:
    named, meant = layer(8, 16), layer(8, 16)
    meant.load_state_dict(named.state_dict())
    assert torch.equal(weight(prune(named, "2:4")), weight(prune(meant, NM(2, 4))))
    with pytest.raises(PatternError, match="2:4 keeps 2 of 4 by itself; leave density out"):
        prune(named, "2:4", density=0.5)
    with pytest.raises(PatternError, match="'2-4' is no pattern"):
        prune(named, "2-4")


def test_what_is_no_model_is_refused() -> None:
    with pytest.raises(ConversionError, match=r"expected a torch.nn.Module, found int 5"):
        prune(5, NM(2, 4))  # type: ignore[arg-type]
