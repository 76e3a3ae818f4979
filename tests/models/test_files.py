"""Models of transformers, pruned, converted, saved, loaded into a dense and a meta skeleton, and verified each time."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from ajour.conversion import convert
from ajour.inspection import inspect
from ajour.io import load, save
from ajour.layers import find_layers
from ajour.pruning import prune
from ajour.terms.pattern import NM
from ajour.verification import verify
from hand_plan import hand_plan

IDS = torch.randint(99, (2, 7))
ENDS = {"bos_token_id": 0, "eos_token_id": 0, "vocab_size": 100}


def gpt2() -> nn.Module:
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(n_embd=64, n_layer=2, n_head=4, n_positions=64, **ENDS))


def llama() -> nn.Module:
    config = transformers.LlamaConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, **ENDS
    )
    return transformers.LlamaForCausalLM(config)


def mixtral() -> nn.Module:
    config = transformers.MixtralConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2,
        num_local_experts=4, **ENDS,
    )  # fmt: skip
    return transformers.MixtralForCausalLM(config)


def t5() -> nn.Module:
    config = transformers.T5Config(
        d_model=64, d_ff=128, num_layers=2, num_heads=4, d_kv=16, vocab_size=100, decoder_start_token_id=0
    )
    return transformers.T5ForConditionalGeneration(config)


@pytest.mark.parametrize(
    ("make", "example", "calls"),
    [
        (gpt2, {"input_ids": IDS}, 8),  # lm_head is tied and stays dense
        (llama, {"input_ids": IDS}, 15),
        (mixtral, {"input_ids": IDS}, 5),  # four projections and lm_head; the experts are fused
        (t5, {"input_ids": IDS, "decoder_input_ids": IDS}, 32),
    ],
)
def test_the_whole_way_and_back_from_the_file(
    tmp_path: Path, make: Callable[[], nn.Module], example: dict[str, Tensor], calls: int
) -> None:
    model = prune(make().eval(), NM(2, 4))
    reference = copy.deepcopy(model)
    convert(model, hand_plan(model))
    save(model, tmp_path / "m.safetensors")
    with torch.device("meta"):
        on_meta = make().eval()
    for converted in (
        model,
        load(tmp_path / "m.safetensors", make().eval()),
        load(tmp_path / "m.safetensors", on_meta),
    ):
        report = verify(converted, reference, example)
        assert report.ok, str(report)
        assert dict(report.calls) == {"nm_linear": calls}
        assert not any(tensor.is_meta for tensor in (*converted.parameters(), *converted.buffers()))
    dense = sum(p.nbytes for p in reference.parameters())
    freed = sum(layer.weight().nbytes for layer in find_layers(reference) if layer.reason is None)
    extra = sum(buffer.nbytes for buffer in reference.buffers()) + 40_000  # rotary tables, and the header
    assert (tmp_path / "m.safetensors").stat().st_size < dense - freed + 0.57 * freed + extra


@pytest.mark.parametrize("make", [gpt2, llama, t5])
def test_a_hugging_face_folder_is_inspected_like_its_model(tmp_path: Path, make: Callable[[], Any]) -> None:
    model = prune(make().eval(), NM(2, 4))
    model.save_pretrained(tmp_path)
    found = {layer.name: layer for layer in inspect(tmp_path).layers}
    for layer in inspect(model).layers:
        if layer.reason is None:
            same = found[layer.name]
            assert (same.kind, same.shape, same.patterns) == (layer.kind, layer.shape, layer.patterns)


def test_experts_are_reported_in_the_model_and_in_its_folder(tmp_path: Path) -> None:
    model: Any = mixtral()
    model.save_pretrained(tmp_path)
    in_model = [layer for layer in inspect(model).layers if layer.kind == "experts"]
    in_folder = [layer for layer in inspect(tmp_path).layers if layer.kind == "experts"]
    assert [layer.shape for layer in in_model] == [(4, 256, 64), (4, 64, 128)]
    assert len(in_folder) == 4 * 3
    assert all(layer.reason for layer in (*in_model, *in_folder))
