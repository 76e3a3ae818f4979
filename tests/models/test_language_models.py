"""Language models from transformers' configurations with random weights, and the traps in them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from agreement import PATTERNS, check, outputs
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd

from ajour.conversion import convert, revert
from ajour.layers import find_layers
from ajour.nn import NMLinear, SparseLinear
from ajour.terms.pattern import NM, Pattern
from forced import counting, plan_for, pruned

IDS = torch.tensor([[5, 17, 80, 3, 41], [9, 9, 22, 60, 1]])


def logits(model: Any) -> Tensor:
    return model(input_ids=IDS, use_cache=False).logits  # type: ignore[no-any-return]


def gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=32, n_head=4, vocab_size=96, n_positions=16)).eval()


def llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
            vocab_size=96, tie_word_embeddings=False, max_position_embeddings=64,
        )
    ).eval()  # fmt: skip


def t5(gated: bool = False) -> nn.Module:
    from transformers import T5Config, T5ForConditionalGeneration

    return T5ForConditionalGeneration(
        T5Config(
            d_model=32, d_ff=64, d_kv=8, num_heads=4, num_layers=2, vocab_size=96, decoder_start_token_id=0,
            feed_forward_proj="gated-gelu" if gated else "relu",
        )
    ).eval()  # fmt: skip


def t5_logits(model: Any) -> Tensor:
    return model(input_ids=IDS, decoder_input_ids=IDS[:, :3], use_cache=False).logits  # type: ignore[no-any-return]


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_gpt2_has_transposed_weights_and_a_tied_head(pattern: Pattern) -> None:
    model: Any = gpt2()
    kinds = {layer.name: (layer.kind, layer.shape) for layer in find_layers(model)}
    assert kinds["transformer.h.0.mlp.c_fc"] == ("Conv1D", (128, 32))
    check(model, pattern, logits, calls=4 * 2)
    assert model.lm_head.weight is model.transformer.wte.weight, "tied embeddings stay tied"
    assert model.transformer.h[0].mlp.c_fc.activation == "gelu_tanh"
    revert(model)
    assert type(model.transformer.h[0].mlp.c_fc).__name__ == "Conv1D"
    assert model.transformer.h[0].mlp.c_fc.weight.shape == (32, 128)


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_llama_runs_sparse_and_its_gate_takes_the_activation_over(pattern: Pattern) -> None:
    model: Any = check(llama(), pattern, logits, calls=7 * 2 + 1)
    assert model.model.layers[0].mlp.gate_proj.activation == "silu"
    assert model.model.layers[0].mlp.up_proj.activation == "none"


def test_generation_steps_through_the_cache() -> None:
    model: Any = pruned(llama(), NM(2, 4))
    with torch.no_grad():
        wanted = model.generate(IDS, max_new_tokens=4, do_sample=False, pad_token_id=0)
        convert(model, plan_for(model, NM(2, 4)))
        with counting(nm_linear=4 * 15):
            assert torch.equal(model.generate(IDS, max_new_tokens=4, do_sample=False, pad_token_id=0), wanted)


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("gated", [False, True])
def test_t5_reads_weights_in_its_forward(pattern: Pattern, gated: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    feed_forward = 3 if gated else 2
    model = check(t5(gated), pattern, t5_logits, calls=2 * (4 + feed_forward) + 2 * (8 + feed_forward))
    read = []
    weight = SparseLinear.weight
    monkeypatch.setattr(SparseLinear, "weight", property(lambda self: read.append(1) or weight.fget(self)))  # type: ignore[attr-defined]
    monkeypatch.setattr(SparseLinear, "matrix", lambda self: pytest.fail("reading .weight.dtype rebuilt the weight"))
    outputs(model, t5_logits)
    assert read, "T5 no longer reads .weight; this test shows nothing"


@pytest.mark.unpoisoned
def test_a_converted_t5_compiles_into_one_graph() -> None:
    model = pruned(t5(), NM(2, 4))
    convert(model, plan_for(model, NM(2, 4)))
    wanted = outputs(model, t5_logits)
    called: list[str] = []

    def count(graph: torch.fx.GraphModule, inputs: object) -> Any:
        called.extend(str(node.target) for node in graph.graph.nodes if "ajour" in str(node.target))
        return graph

    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend=aot_autograd(fw_compiler=count))
    torch.testing.assert_close(outputs(compiled, t5_logits), wanted)
    assert called == ["ajour.nm_linear.default"] * 32, "and nothing that T5 reads of a weight is rebuilt"


def test_half_precision_keeps_what_t5_keeps_in_float32() -> None:
    model: Any = pruned(t5(), NM(2, 4))
    convert(model, plan_for(model, NM(2, 4)))
    model.bfloat16()
    model.encoder.block[0].layer[1].DenseReluDense.wo.float()
    with counting(nm_linear=36 - 4):
        assert t5_logits(model).dtype is torch.bfloat16


class Tagger(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(96, 32)
        self.lstm = nn.LSTM(32, 32, 2, batch_first=True)
        self.head = nn.Linear(32, 16)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.lstm(self.embed(ids))[0])  # type: ignore[no-any-return]


def test_an_lstm_is_reported_and_its_head_converted() -> None:
    model = Tagger()
    reasons = {layer.name: layer.reason for layer in find_layers(model)}
    assert "there is no layer to swap" in str(reasons["lstm.weight_ih_l0"])
    assert len([reason for reason in reasons.values() if reason and "LSTM" in reason]) == 4
    check(model, NM(2, 4), lambda model: model(IDS), calls=1)
    assert type(model.lstm) is nn.LSTM
    assert type(model.head) is NMLinear


def test_fused_experts_are_reported_and_the_rest_converted() -> None:
    from transformers import MixtralConfig, MixtralForCausalLM

    model = MixtralForCausalLM(
        MixtralConfig(
            hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2,
            num_local_experts=4, num_experts_per_tok=2, vocab_size=96, max_position_embeddings=64,
        )
    ).eval()  # fmt: skip
    experts = [layer for layer in find_layers(model) if layer.kind == "experts"]
    assert [layer.name.rpartition(".")[2] for layer in experts] == ["gate_up_proj", "down_proj"]
    assert all("fused experts" in str(layer.reason) for layer in experts)
    usable = [layer.name for layer in find_layers(model) if layer.reason is None]
    check(model, NM(2, 4), logits, calls=len(usable))
