"""Mask tuning: the paper's equations spelled out entry by entry, frozen weights, and zeros that are really zero."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from ajour.terms.errors import ConversionError
from ajour.train.finish import finish
from ajour.train.masks import Masks
from ajour.train.tuning import backward_with_dropout, gradient_dropout, mask_penalty, tune_masks
from pruned import bits


def slow_dropout(task: Tensor, teacher: Tensor, level: float, u: Tensor) -> Tensor:
    """((1 - l) + l [P > U]) g_a with P = 0.5 (1 + sign(g_a) (g_a + g_b) / (|g_a| + |g_b| + 1e-8))."""
    out = torch.empty_like(task).flatten()
    for i, (a, b, v) in enumerate(zip(task.flatten().tolist(), teacher.flatten().tolist(), u.flatten(), strict=True)):
        sign = (a > 0) - (a < 0)
        p = 0.5 * (1 + sign * (a + b) / (abs(a) + abs(b) + 1e-8))
        out[i] = ((1 - level) + level * (p > float(v))) * a
    return out.view_as(task)


@pytest.mark.parametrize("level", [1.0, 0.3, 0.0])
def test_gradient_dropout_is_the_paper_s_formula(level: float) -> None:
    task, teacher = torch.randn(40, 30), torch.randn(40, 30)
    teacher[:10] = -task[:10].sign() * teacher[:10].abs()  # against the task
    made = gradient_dropout(task, teacher, level, torch.Generator().manual_seed(3))
    u = torch.rand(40, 30, generator=torch.Generator().manual_seed(3))
    assert torch.allclose(made, slow_dropout(task, teacher, level, u), rtol=1e-6, atol=0)


def test_agreeing_gradients_pass_whole_and_opposed_ones_never() -> None:
    task = torch.randn(1000)
    assert torch.equal(gradient_dropout(task, task), task)
    assert not gradient_dropout(task, -1e9 * task).any()
    assert torch.allclose(gradient_dropout(task, -1e9 * task, 0.3), 0.7 * task)


def model() -> nn.Sequential:
    return nn.Sequential(nn.Linear(12, 10), nn.Tanh(), nn.Linear(10, 4))


def test_a_run_equals_a_slow_one_and_the_weights_never_move() -> None:
    net, x, y = model(), torch.randn(32, 12), torch.randint(0, 4, (32,))
    plain = {name: p.detach().clone() for name, p in net.named_parameters()}
    teacher = net(x).detach().log_softmax(-1)
    scores = tune_masks(net, ["0.weight", "2.weight"])
    assert {name for name, p in net.named_parameters() if p.requires_grad} == {
        "0.parametrizations.weight.0.scores", "2.parametrizations.weight.0.scores",
    }  # fmt: skip
    optimizer = torch.optim.SGD(scores.values(), 1.0)
    slow = {name: torch.full_like(plain[name], 1e-2) for name in scores}
    fast_noise, slow_noise = (torch.Generator().manual_seed(5) for _ in range(2))
    for _ in range(30):
        out = net(x).log_softmax(-1)
        loss = functional.nll_loss(out, y) + 1e-4 * mask_penalty(scores)
        backward_with_dropout(loss, functional.kl_div(out, teacher, log_target=True, reduction="batchmean"), scores,
                       generator=fast_noise)  # fmt: skip
        optimizer.step()
        _slow_step(slow, plain, x, y, teacher, slow_noise)
    for name in scores:
        assert torch.allclose(scores[name], slow[name], rtol=1e-4, atol=1e-6)
        assert ((scores[name] > 5e-3) != torch.ones(())).any(), "no entry was dropped; this tests nothing"
    for name, p in plain.items():
        path, _, leaf = name.rpartition(".")
        held = getattr(net.get_submodule(path), "parametrizations", None)
        assert torch.equal(net.get_parameter(name) if leaf not in (held or {}) else held[leaf].original, p)


def _slow_step(
    scores: dict[str, Tensor], plain: dict[str, Tensor], x: Tensor, y: Tensor, teacher: Tensor, noise: torch.Generator
) -> None:
    """The chain rule by hand: the gradient of a score is that of the masked weight times the weight."""
    masked = {name: (plain[name] * (score > 5e-3)).requires_grad_() for name, score in scores.items()}
    hidden = torch.tanh(functional.linear(x, masked["0.weight"], plain["0.bias"]))
    out = functional.linear(hidden, masked["2.weight"], plain["2.bias"]).log_softmax(-1)
    task = torch.autograd.grad(-out[torch.arange(len(y)), y].mean(), list(masked.values()), retain_graph=True)
    kl = (teacher.exp() * (teacher - out)).sum() / len(x)
    copied = torch.autograd.grad(kl, list(masked.values()))
    for (name, score), a, b in zip(scores.items(), task, copied, strict=True):
        norm = math.sqrt(float(score.double().square().sum()))
        a, b = a * plain[name] + 1e-4 * score / norm, b * plain[name]
        score -= slow_dropout(a, b, 1.0, torch.rand(score.shape, generator=noise))


def test_finish_leaves_plain_weights_with_exact_zeros() -> None:
    net = model()
    before = net[0].weight.detach().clone()
    scores = tune_masks(net, ["0.weight"])
    with torch.no_grad():
        scores["0.weight"][::2] = 4e-3
    kept = torch.ones(10, 12, dtype=torch.bool)
    kept[::2] = False
    finish(net)
    assert type(net[0]) is nn.Linear
    assert torch.equal(bits(net[0].weight.detach()), bits(torch.where(kept, before, 0.0)))
    assert torch.equal(Masks.from_zeros(net)["0.weight"].dense(), kept)


def test_unknown_and_tied_parameters_are_refused_by_name_and_nothing_changes() -> None:
    net = model()
    with pytest.raises(ConversionError, match=r"'1.weight' is no parameter of this model; it has 0.weight"):
        tune_masks(net, ["0.weight", "1.weight"])
    tied = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    tied[1].weight = tied[0].weight
    with pytest.raises(ConversionError, match=r"'0.weight' is tied to '1.weight'"):
        tune_masks(tied, ["0.weight"])
    assert all(p.requires_grad for p in [*net.parameters(), *tied.parameters()])
