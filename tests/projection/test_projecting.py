"""project: says what fitting a pattern costs, rightly, and changes nothing."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import ajour
from ajour.detect import detect
from ajour.projection.choosing import kept_places
from ajour.terms.errors import ConversionError, PatternError
from ajour.terms.pattern import NM, Block, Dense, Pattern, Unstructured

PATTERNS = (NM(2, 4), NM(1, 4), NM(4, 8), Block(4, 4), Unstructured())


def model() -> nn.Sequential:
    return nn.Sequential(nn.Linear(48, 64), nn.GELU(), nn.Linear(64, 32)).eval()


def fitting(w: Tensor, pattern: Pattern) -> bool:
    found = detect(w)
    if isinstance(pattern, NM):
        return found.keeps[pattern.group] <= pattern.keep
    return True


@given(
    st.integers(1, 20), st.integers(1, 40), st.sampled_from(PATTERNS), st.floats(0, 1), st.integers(0, 99),
)  # fmt: skip
@settings(max_examples=80, deadline=None)
def test_what_is_kept_fits_and_loses_no_more_than_allowed(
    n: int, k: int, pattern: Pattern, density: float, seed: int
) -> None:
    torch.manual_seed(seed)
    w = torch.randn(n, k) * (torch.rand(n, k) < density)
    live = w != 0
    kept = kept_places(w.abs(), live, pattern, 0.1)
    assert not bool((kept & ~live).any())
    assert fitting(torch.where(kept, w, 0), pattern)
    if isinstance(pattern, NM):
        groups = nn.functional.pad(live, (0, -k % pattern.group)).view(n, -1, pattern.group)
        fit = (groups.sum(-1, keepdim=True) <= pattern.keep).expand_as(groups).flatten(1)[:, :k]
        assert torch.equal(kept & fit, live & fit), "a group that fits loses nothing"
    else:
        lost, total = (float(w.double().square()[places].sum()) for places in (live & ~kept, live))
        assert lost <= 0.1 * total * (1 + 1e-9)


def test_the_largest_of_a_group_stay() -> None:
    w = torch.tensor([[1.0, -3.0, 2.0, 0.5, 4.0, 0.0, 0.0, 1e-30]])
    kept = kept_places(w.abs(), w != 0, NM(2, 4), 0.0)
    assert kept.tolist() == [[False, True, True, False, True, False, False, True]]


def test_the_report_says_what_it_costs_and_the_model_is_unchanged() -> None:
    dense, x = model(), torch.randn(40, 48)
    before = {name: tensor.clone() for name, tensor in dense.state_dict().items()}
    report = ajour.project(dense, NM(2, 4), x)
    assert all(torch.equal(before[name], tensor) for name, tensor in dense.state_dict().items())
    first = report.layers[0]
    w = dense[0].weight.detach()
    pruned = w.clone()
    groups = pruned.view(64, 12, 4)
    groups.scatter_(-1, groups.abs().topk(2, largest=False).indices, 0.0)
    assert (first.name, first.shape, first.kept, first.dropped) == ("0", (64, 48), 0.5, 64 * 24)
    assert first.energy_lost == pytest.approx(float((w - pruned).square().sum() / w.square().sum()), rel=1e-5)
    error = torch.linalg.norm(x @ (w - pruned).T) / torch.linalg.norm(x @ w.T)
    assert first.output_error == pytest.approx(float(error), rel=1e-4)
    assert [row.output_error is None for row in ajour.project(dense, NM(2, 4)).layers] == [True, True]


def test_a_layer_that_fits_is_said_to() -> None:
    dense = ajour.prune(model(), NM(2, 4))
    report = ajour.project(dense, NM(2, 4), permute=True)
    assert all(row.fits and row.energy_lost == 0 for row in report.layers)
    assert "2 fit as they are" in str(report)


def test_a_few_stray_values_cost_little_and_are_found() -> None:
    dense = ajour.prune(model(), Block(16, 16), density=0.25)
    stray = dense[0].weight.data
    place = (stray == 0).nonzero()[0]
    stray[place[0], place[1]] = 1e-3
    (first, second) = ajour.project(dense, Block(16, 16)).layers
    assert first.dropped == 1
    assert 0 < first.energy_lost < 1e-5
    assert second.fits
    assert ajour.project(dense, Block(16, 16), lose=0.0).layers[0].dropped == 0


def test_calibrated_projection_moves_outputs_less_where_features_differ() -> None:
    dense = model()
    x = torch.randn(200, 48) * torch.logspace(-2, 2, 48)
    plain, weighed = (ajour.project(dense, NM(2, 4), x, calibrated=c).layers[0] for c in (False, True))
    assert weighed.output_error < plain.output_error
    assert weighed.energy_lost > plain.energy_lost


def test_several_inputs_count_together() -> None:
    dense, x = model(), torch.randn(30, 48)
    whole, parts = (ajour.project(dense, NM(2, 4), e).layers[0].output_error for e in (x, [x[:10], x[10:]]))
    assert whole == pytest.approx(parts, rel=1e-5)


def test_json_and_text_say_the_same() -> None:
    dense = model()
    dense[2].weight.data[0, 0] = float("nan")
    report = ajour.project(dense, NM(2, 4), permute=True)
    data = json.loads(report.to_json())
    assert data["pattern"] == "2:4"
    first, second = data["layers"]
    assert first["permuted"] is True
    assert first["energy_lost"] < first["energy_lost_unpermuted"]
    assert second["reason"].startswith("its weight holds NaN or Inf")
    text = str(report)
    assert f"{first['energy_lost']:.3%}" in text
    assert "x is put in order" in text
    assert "2: its weight holds NaN or Inf, which have no energy to compare" in text
    assert text.endswith("a report changes nothing, .apply(model) does")


def test_what_can_not_be_projected_has_its_reason() -> None:
    tied = nn.ModuleDict({"a": nn.Linear(16, 16), "b": nn.Linear(16, 16)})
    tied["b"].weight = tied["a"].weight
    rows = ajour.project(tied, NM(2, 4)).layers
    assert all("tied" in (row.reason or "") for row in rows)


@pytest.mark.parametrize(
    ("pattern", "options", "match"),
    [
        (Dense(), {}, "dense is nothing to project to"),
        (NM(2, 4), {"lose": 0.1}, "2:4 loses what it must"),
        (Block(4, 4), {"permute": True}, "an order of in features is searched for N:M patterns, not for block 4x4"),
        (NM(2, 4), {"calibrated": True}, "calibrated weighs by what an example brings; give one"),
        (Unstructured(), {"lose": 1.5}, "lose is a share from 0 to 1, found 1.5"),
    ],
)
def test_settings_that_make_no_sense_are_refused(pattern: Pattern, options: dict[str, object], match: str) -> None:
    with pytest.raises(PatternError, match=match):
        ajour.project(model(), pattern, **options)  # type: ignore[arg-type]


def test_a_layer_that_is_not_there_is_refused() -> None:
    with pytest.raises(ConversionError, match="no layer matches 'nowhere'"):
        ajour.project(model(), NM(2, 4), layers="nowhere")


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_an_encoder_with_a_padding_mask_is_watched() -> None:
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    padding = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    example = {"src": torch.randn(2, 5, 16), "src_key_padding_mask": padding}
    report = ajour.project(nn.TransformerEncoder(layer, 1), NM(2, 4), example)
    assert report.layers
    assert all(layer.output_error is not None for layer in report.layers if layer.name.endswith(("linear1", "linear2")))


def test_a_pattern_may_be_named() -> None:
    some = model()
    assert str(ajour.project(some, "2:4")) == str(ajour.project(some, NM(2, 4)))
    with pytest.raises(PatternError, match="'2-4' is no pattern"):
        ajour.project(some, "2-4")
