"""ajour.read with a model: filled whole or not at all, by name, shape and dtype."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import ajour
from ajour.importers.progress import bar
from ajour.terms.errors import FileError


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.fc, self.head = nn.Embedding(24, 16), nn.Linear(16, 16), nn.Linear(16, 24, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("seen", torch.zeros(3))


def state_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same(model: nn.Module, wanted: dict[str, Tensor]) -> None:
    found = model.state_dict()
    assert set(found) == set(wanted)
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())


def test_a_model_is_filled_in_place_and_keeps_its_parameters() -> None:
    wanted, model = state_of(Tied()), Tied()
    parameters = dict(model.named_parameters())
    assert ajour.read(wanted, model) is model
    assert_same(model, wanted)
    assert all(parameter is parameters[name] for name, parameter in model.named_parameters())


@pytest.mark.parametrize("dropped", ["embed.weight", "head.weight", ""])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_tied_tensors_may_stand_in_the_file_once_and_stay_tied(dropped: str, device: str) -> None:
    wanted = state_of(Tied())
    with torch.device(device):
        model = Tied()
        model.head.weight = model.embed.weight
    ajour.read({name: tensor for name, tensor in wanted.items() if name != dropped}, model)
    assert_same(model, wanted)
    assert model.head.weight is model.embed.weight


@pytest.mark.parametrize("prefix", ["module.", "model.", "_orig_mod."])
def test_a_wrapper_s_prefix_is_left_out_where_every_name_has_it(prefix: str) -> None:
    wanted, model = state_of(Tied()), Tied()
    ajour.read({prefix + name: tensor for name, tensor in wanted.items()}, model)
    assert_same(model, wanted)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fc.weight": None}, "the file lacks 1 tensors: fc.weight"),
        ({"other": torch.ones(2)}, "the model lacks 1 tensors: other"),
        ({"fc.weight": torch.ones(16, 8)}, r"'fc.weight' is \(16, 8\) in the file, \(16, 16\) in the model"),
        ({"fc.weight": torch.ones(16, 16).half()}, r"'fc.weight' is float16 in the file.*model.to\(float16\)"),
        ({"head.weight": torch.ones(24, 16)}, "are tied in the model, and differ in the file"),
    ],
)
def test_a_file_of_another_model_changes_nothing(change: dict[str, Tensor | None], message: str) -> None:
    wanted, model = state_of(Tied()), Tied()
    before = state_of(model)
    given = {name: tensor for name, tensor in {**wanted, **change}.items() if tensor is not None}
    with pytest.raises(FileError, match=message):
        ajour.read(given, model)
    assert_same(model, before)


def test_a_damaged_last_tensor_changes_nothing(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(16, 16, bias=False), nn.Linear(16, 16, bias=False))
    before = state_of(model)
    save_file({**before, "1._weight_mask": torch.full((16, 16), 2.0)}, tmp_path / "x.safetensors")
    with pytest.raises(FileError, match=r"1._weight_mask should hold zeros and ones, as a mask beside 1.weight does"):
        ajour.read(tmp_path / "x.safetensors", model)
    assert_same(model, before)


def test_masks_need_a_model_with_those_weights_and_values() -> None:
    mask = torch.rand(16, 16) < 0.5
    with pytest.raises(FileError, match=r"\(masks by name\) is for a model with 'other' or 'other.weight', which this"):
        ajour.read({"other": mask}, Tied())
    with torch.device("meta"):
        empty = Tied()
    with pytest.raises(FileError, match="whose values this model has not got yet; load the base model"):
        ajour.read({"fc": mask}, empty)
    both = torch.rand(24, 16) < 0.5
    with pytest.raises(FileError, match="twice, as it is tied"):
        ajour.read({"embed": both, "head": both}, Tied())
    with pytest.raises(FileError, match=r"fc: the file is for \(8, 16\), the model holds \(16, 16\)"):
        ajour.read({"fc": mask[:8]}, Tied())


def test_ties_may_hold_nan() -> None:
    wanted, model = state_of(Tied()), Tied()
    wanted["head.weight"][0, 0] = wanted["embed.weight"][0, 0] = float("nan")
    ajour.read(wanted, model)
    assert bool(model.head.weight[0, 0].isnan())


def test_differences_of_another_dtype_are_refused() -> None:
    delta = {"fc.sft_delta.values": torch.ones(2), "fc.sft_delta.indices": torch.tensor([1, 2])}
    with pytest.raises(FileError, match=r"float32, the model's.*torch.float16; call model.to"):
        ajour.read(delta, Tied().half())


def test_tensors_that_share_memory_in_a_file_share_it_when_read(tmp_path: Path) -> None:
    model = Tied()
    torch.save(model.state_dict(), tmp_path / "x.pt")
    found = ajour.read(tmp_path / "x.pt")
    assert found["head.weight"].data_ptr() == found["embed.weight"].data_ptr()
    assert torch.equal(found["head.weight"], model.head.weight)


def test_a_mapping_without_tensors_is_refused() -> None:
    with pytest.raises(FileError, match="the mapping holds no tensor; expected a state_dict, or masks"):
        ajour.read({})


def test_the_bar_counts_and_is_silent_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with bar(True, "x", 2) as advance:
        advance()
        advance()
    assert capsys.readouterr().err == ""


def test_an_expanded_buffer_is_told_before_anything_changes() -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    model.register_buffer("p", torch.arange(4).expand(3, 4))
    before = state_of(model)
    wanted = {name: torch.randn(tensor.shape).to(tensor.dtype) for name, tensor in before.items()}
    with pytest.raises(FileError, match="'p' is expanded and can't be filled"):
        ajour.read(wanted, model)
    assert_same(model, before)


def test_parameters_that_share_memory_without_being_one_are_not_overwritten_by_each_other() -> None:
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    model[1].weight = nn.Parameter(model[0].weight.data)
    before, w = state_of(model), torch.randn(4, 4)
    with pytest.raises(FileError, match="shares its memory in the model with a tensor that differs"):
        ajour.read({"0.weight": w, "1.weight": w + 1}, model)
    assert_same(model, before)
    ajour.read({"0.weight": w, "1.weight": w}, model)
    assert_same(model, {"0.weight": w, "1.weight": w})


def test_views_of_one_memory_that_don_t_overlap_are_filled() -> None:
    model, whole = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)), torch.randn(4, 8)
    model[0].weight, model[1].weight = nn.Parameter(whole[:, :4]), nn.Parameter(whole[:, 4:])
    wanted = {"0.weight": torch.randn(4, 4), "1.weight": torch.randn(4, 4)}
    ajour.read(wanted, model)
    assert_same(model, wanted)
