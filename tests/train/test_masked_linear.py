"""MaskedLinear: the same layer, with a weight gradient that is zero outside the mask and computed where it lives."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import ajour
from ajour.planning.timing import Side, Timing
from ajour.terms.errors import PatternError
from ajour.terms.pattern import NM, Block, Pattern, Unstructured
from ajour.train.linear import MaskedLinear, mask_linears
from ajour.train.masks import Masks
from pruned import bits, keep_mask, truth

BLOCKS = (Block(8, 8), Block(4, 16), Block(32, 1), Block(3, 5))
SHAPES = ((32, 48), (33, 47), (5, 7))


def layer(pattern: Pattern, n: int, k: int, dtype: torch.dtype = torch.float32) -> tuple[MaskedLinear, Tensor]:
    linear = nn.Linear(k, n).to(dtype)
    keep = keep_mask(pattern, n, k)
    return MaskedLinear(linear, keep, pattern), keep


@pytest.mark.parametrize("pattern", [*BLOCKS, Unstructured()], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_gradient_is_that_of_a_masked_dense_layer(pattern: Pattern, shape: tuple[int, int]) -> None:
    n, k = shape
    masked, keep = layer(pattern, n, k)
    x = torch.randn(2, 9, k, requires_grad=True)
    dy = torch.randn(2, 9, n)
    y = masked(x)
    y.backward(dy)

    w = masked.weight.detach().clone().requires_grad_()
    same_x, bias = x.detach().clone().requires_grad_(), masked.bias.detach().clone().requires_grad_()
    expected = functional.linear(same_x, w * keep, bias)
    expected.backward(dy)
    rows, columns = dy.view(-1, n), x.detach().view(-1, k)
    kept_w = masked.weight.detach()
    truth(columns, kept_w, masked.bias.detach(), None, "none").check(y.detach().view(-1, n), "y")
    truth(rows, kept_w.T.contiguous(), None, None, "none").check(x.grad.view(-1, k), "dx")
    assert torch.allclose(masked.bias.grad, bias.grad, rtol=1e-5, atol=1e-5)
    truth(rows.T.contiguous(), columns.T.contiguous(), None, None, "none").check(
        torch.where(keep, masked.weight.grad, rows.T @ columns), "dw"
    )
    outside = bits(masked.weight.grad)[~keep]
    assert not outside.any(), "outside the mask is not +0.0"


@pytest.mark.parametrize("pattern", BLOCKS, ids=str)
def test_live_blocks_leave_a_weight_and_come_back_to_their_places(pattern: Block) -> None:
    for n, k in SHAPES:
        masked, keep = layer(pattern, n, k)
        products = masked._block_products()
        w = torch.randn(n, k)
        blocks = products.take(w)
        assert blocks.shape[1:] == (pattern.rows, pattern.cols)
        assert torch.equal(bits(products.place(blocks)), bits(torch.where(keep, w, 0.0)))


def test_both_products_have_the_same_derivatives_of_any_order() -> None:
    torch.manual_seed(3)
    masked, keep = layer(Block(4, 4), 8, 12, torch.float64)
    x = torch.randn(3, 12, dtype=torch.float64, requires_grad=True)
    w = masked.weight.detach().clone().requires_grad_()
    run = masked._block_products().linear
    assert torch.autograd.gradcheck(lambda x, w: run(x, torch.where(keep, w, 0.0), None), (x, w))
    assert torch.autograd.gradgradcheck(lambda x, w: run(x, torch.where(keep, w, 0.0), None), (x, w))


def test_products_are_chosen_before_and_said() -> None:
    pattern = Block(8, 8)
    masked, keep = layer(pattern, 32, 64)
    assert (masked.products, layer(Unstructured(), 32, 64)[0].products) == ("blocks", "dense")
    assert "products=blocks" in repr(masked)
    linear = nn.Linear(64, 32)
    with torch.no_grad():
        linear.weight.copy_(masked.weight)
        linear.bias.copy_(masked.bias)
    dense = MaskedLinear(linear, keep, pattern, products="dense")
    x, dy = torch.randn(5, 64), torch.randn(5, 32)
    for each in (masked, dense):
        each(x).backward(dy)
        assert not bits(each.weight.grad)[~keep].any()
    truth(dy.T.contiguous(), x.T.contiguous(), None, None, "none").check(
        torch.where(keep, dense.weight.grad, dy.T @ x), "dw"
    )
    assert torch.allclose(masked.weight.grad, dense.weight.grad, rtol=1e-4, atol=1e-5)
    with pytest.raises(PatternError, match=r"products='blocks' with unstructured: expected 'dense'"):
        MaskedLinear(nn.Linear(8, 8), None, Unstructured(), products="blocks")
    with pytest.raises(PatternError, match=r"products='fast'"):
        MaskedLinear(nn.Linear(8, 8), None, pattern, products="fast")


def test_measured_products_leave_gradients_and_weights_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for dense, onednn, blocks, chosen in (
        (9.0, 7.0, 5.0, "blocks"), (5.0, 9.0, 9.0, "dense"), (9.0, 9.0, 8.9, "dense"), (9.0, 5.0, 7.0, "onednn"),
        (9.0, 5.0, 4.9, "onednn"),
    ):  # fmt: skip
        times = {"dense": dense, "onednn": onednn, "blocks": blocks}

        def measured(sides: list[Side], timer: object, times: dict[str, float] = times) -> list[Timing]:
            for side in sides:
                side.calls[0]()
            assert [side.name for side in sides] == list(times)
            return [Timing(times[side.name], times[side.name] - 0.2, times[side.name] + 0.2) for side in sides]

        monkeypatch.setattr("ajour.train.linear.measure", measured)
        model = nn.Sequential(nn.Linear(16, 24))
        masks = Masks.from_pattern(model, Block(8, 8), 0.4)
        assert mask_linears(model, masks, Block(8, 8), rows=4)[0].products == chosen
        assert model[0].weight.grad is None


def test_without_blocks_the_faster_dense_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    timings = [Timing(us, us - 0.2, us + 0.2) for us in (9.0, 5.0)]
    monkeypatch.setattr("ajour.train.linear.measure", lambda sides, timer: timings[: len(sides)])
    for dtype, chosen in ((torch.float32, "onednn"), (torch.float64, "dense")):
        model = nn.Sequential(nn.Linear(16, 24)).to(dtype)
        masks = Masks.from_pattern(model, Unstructured(), 0.4)
        assert mask_linears(model, masks, rows=4)[0].products == chosen


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=lambda d: str(d)[6:])
def test_onednn_gives_the_gradients_of_a_masked_dense_layer(dtype: torch.dtype) -> None:
    for n, k in SHAPES:
        keep = keep_mask(Unstructured(), n, k)
        masked = MaskedLinear(nn.Linear(k, n).to(dtype), keep, products="onednn")
        x = torch.randn(4, 3, k).to(dtype).transpose(0, 1).requires_grad_()
        for dy in (torch.randn(3, 4, n).to(dtype), torch.ones(n).to(dtype).expand(3, 4, n)):
            masked.weight.grad = x.grad = None
            y = masked(x)
            y.backward(dy)
            rows, columns, w = dy.reshape(-1, n), x.detach().reshape(-1, k), masked.weight.detach()
            truth(columns, w, masked.bias.detach(), None, "none").check(y.detach().reshape(-1, n), "y")
            truth(rows, w.T.contiguous(), None, None, "none").check(x.grad.reshape(-1, k), "dx")
            truth(rows.T.contiguous(), columns.T.contiguous(), None, None, "none").check(
                torch.where(keep, masked.weight.grad, rows.T @ columns), "dw"
            )
            assert not bits(masked.weight.grad)[~keep].any()
        masked(torch.empty(0, k, dtype=dtype)).sum().backward()


def test_onednn_leaves_second_derivatives_and_autocast_as_they_are() -> None:
    keep = keep_mask(Unstructured(), 8, 6)
    masked = MaskedLinear(nn.Linear(6, 8), keep, products="onednn")
    plain = MaskedLinear(masked.to_linear(), keep, products="dense")
    x, found = torch.randn(5, 6, requires_grad=True), []
    for each in (masked, plain):
        (dx,) = torch.autograd.grad(each(x).square().sum(), x, create_graph=True)
        found.append(torch.autograd.grad(dx.square().sum(), each.weight)[0])
        with torch.autocast("cpu", torch.bfloat16):
            y = each(x)
        assert y.dtype == torch.bfloat16
        found.append(torch.autograd.grad(y.float().sum(), each.weight)[0])
        assert found[-1].dtype == torch.float32
    assert torch.allclose(found[0], found[2], rtol=1e-4, atol=1e-5)
    assert torch.allclose(found[1], found[3], rtol=2e-2, atol=2e-2)
    with pytest.raises(PatternError, match=r"products='onednn' .* expected 'dense' for a weight of torch.float64"):
        MaskedLinear(nn.Linear(4, 4).double(), None, products="onednn")


def test_products_follow_the_mask_wherever_it_comes_from(tmp_path: Path) -> None:
    pattern = Block(8, 8)
    first, keep = layer(pattern, 16, 32)
    x = torch.randn(3, 32)
    first(x)
    second, other = layer(pattern, 16, 32)
    assert not torch.equal(keep, other)
    for load in ("state_dict", "file", "mask"):
        target, _ = layer(pattern, 16, 32)
        target(x)
        if load == "state_dict":
            target.load_state_dict(second.state_dict())
        elif load == "file":
            ajour.save(nn.Sequential(second), tmp_path / "model.safetensors")
            ajour.load(tmp_path / "model.safetensors", nn.Sequential(target))
        else:
            target.set_mask(second.mask)
            with torch.no_grad():
                target.weight.copy_(second.weight)
                target.bias.copy_(second.bias)
        assert torch.equal(target(x), second(x)), load
        assert target.mask == second.mask
    assert second.double()(x.double()).dtype == torch.float64


@pytest.mark.parametrize("pattern", [Block(8, 8), Unstructured()], ids=str)
def test_nan_and_inf_reach_only_kept_gradients(pattern: Pattern) -> None:
    masked, keep = layer(pattern, 16, 24)
    x = torch.full((3, 24), torch.inf)
    masked(x).backward(torch.full((3, 16), torch.nan))
    assert not bits(masked.weight.grad)[~keep].any()
    assert masked.weight.grad[keep].isnan().all()


def test_no_rows_and_no_live_block() -> None:
    for keep in (torch.zeros(16, 16, dtype=torch.bool), keep_mask(Block(8, 8), 16, 16)):
        masked = MaskedLinear(nn.Linear(16, 16), keep, Block(8, 8))
        masked(torch.empty(0, 16)).sum().backward()
        assert not bits(masked.weight.grad).any()


def test_plain_sgd_keeps_the_zeros_by_itself() -> None:
    masked, keep = layer(Block(8, 8), 32, 32)
    before = masked.weight.detach().clone()
    optimizer = torch.optim.SGD(masked.parameters(), 0.1)
    for _ in range(5):
        optimizer.zero_grad()
        masked(torch.randn(8, 32)).square().sum().backward()
        optimizer.step()
        assert not bits(masked.weight.detach())[~keep].any()
    assert (masked.weight[keep] != before[keep]).any()


def test_autocast_gives_gradients_in_the_weight_s_own_type() -> None:
    masked, keep = layer(Block(8, 8), 32, 32)
    x = torch.randn(8, 32, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = masked(x)
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert (masked.weight.grad.dtype, masked.bias.grad.dtype, x.grad.dtype) == (torch.float32,) * 3
    expected = (torch.ones(32, 8) @ x.detach()) * keep
    assert torch.allclose(masked.weight.grad, expected, rtol=2e-2, atol=2e-2)


def test_weight_and_bias_are_shared_and_come_back() -> None:
    linear = nn.Linear(16, 8)
    masked = MaskedLinear(linear.eval(), keep_mask(Unstructured(), 8, 16))
    assert masked.weight is linear.weight
    assert masked.bias is linear.bias
    back = masked.to_linear()
    assert type(back) is nn.Linear
    assert back.weight is linear.weight
    assert MaskedLinear(nn.Linear(4, 4, bias=False)).to_linear().bias is None


def test_only_masked_layers_are_replaced_and_all_is_checked_first() -> None:
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16))
    masks = Masks.from_pattern(model, Block(8, 8), 0.5, layers="2")
    mask_linears(model, masks, Block(8, 8))
    assert type(model[0]) is nn.Linear
    assert isinstance(model[2], MaskedLinear)
    assert model[2].mask == masks["2.weight"]
    assert not model[2].weight[~masks["2.weight"].dense()].any()

    model = nn.Sequential(nn.Linear(16, 16), nn.Conv1d(4, 4, 1))
    good = Masks.from_pattern(model, Block(8, 8), 0.5, layers="0")["0.weight"]
    scattered = Masks.from_pattern(model, NM(2, 4), layers="0")["0.weight"]
    for masks, message in (
        ({"0.weight": good, "1.weight": good}, r"'1.weight' is not the weight of an nn.Linear"),
        ({"0.weight": good, "0.bias": good}, r"'0.bias' is not the weight"),
        ({"0.weight": scattered}, r"'0.weight': its mask cuts through blocks, so it isn't one of block 8x8"),
    ):
        with pytest.raises(PatternError, match=message):
            mask_linears(model, masks, Block(8, 8))
        assert type(model[0]) is nn.Linear


def test_a_mask_of_another_shape_is_refused() -> None:
    with pytest.raises(PatternError, match=r"'weight': its mask is \(4, 4\), the parameter \(8, 16\)"):
        MaskedLinear(nn.Linear(16, 8), torch.ones(4, 4, dtype=torch.bool))


def test_the_state_carries_the_mask_and_refuses_weights_outside_it() -> None:
    saved, keep = layer(Block(8, 8), 16, 16)
    fresh = MaskedLinear(nn.Linear(16, 16), keep_mask(Block(8, 8), 16, 16), Block(8, 8))
    state = saved.state_dict()
    fresh.load_state_dict(state)
    assert torch.equal(fresh.mask.dense(), keep)
    assert torch.equal(bits(fresh.weight.detach()), bits(saved.weight.detach()))

    wrong = dict(state, weight=torch.ones(16, 16))
    with pytest.raises(RuntimeError, match="weight is not zero outside the mask that comes with it"):
        fresh.load_state_dict(wrong)
    negative = dict(state, weight=torch.where(keep, state["weight"], -0.0))
    fresh.load_state_dict(negative)
    assert not bits(fresh.weight.detach())[~keep].any()


def test_a_layer_with_a_forward_of_its_own_is_refused() -> None:
    class Odd(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input) + 1

    with pytest.raises(PatternError, match="Odd has a forward of its own"):
        MaskedLinear(Odd(4, 4))
