"""All or nothing: whatever fails, wherever it fails, the model is as it was, bit for bit."""

from __future__ import annotations

import copy
import sys
from itertools import count
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import ajour
from ajour.conversion import convert
from ajour.conversion.swap import Swap
from ajour.formats import BitmapMatrix
from ajour.layers import find_layers
from ajour.nn import linear_of
from ajour.terms.pattern import NM, Unstructured
from forced import plan_for, pruned, state_of

HERE = str(Path(ajour.__file__).parent / "conversion")


def model() -> nn.Module:
    """An encoder with fast paths and a function to fold, and a Sequential with a module to fold; gradients; -0.0."""
    encoder = nn.TransformerEncoderLayer(8, 2, 8, activation="gelu", batch_first=True, dropout=0.0)
    made = pruned(
        nn.Sequential(nn.TransformerEncoder(encoder, 1), nn.Sequential(nn.Linear(8, 8), nn.ReLU())), Unstructured()
    ).eval()
    for p in made.parameters():
        p.grad = torch.randn_like(p)
    weight = made.get_parameter("1.0.weight").detach()
    assert bool((torch.signbit(weight) & (weight == 0)).any()), "the rollback must restore the sign of zeros too"
    return made


class FailAt(TorchDispatchMode):
    """Raises at the n-th torch operation, once."""

    def __init__(self, n: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.left = n

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.left -= 1
        if self.left == 0:
            raise MemoryError("injected")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("trainable", [False, True])
def test_convert_is_all_or_nothing_when_any_operation_fails(trainable: bool) -> None:
    made = model()
    plan = plan_for(made, Unstructured())
    before = state_of(made)
    failures = 0
    while True:
        try:
            with FailAt(failures + 1):
                convert(made, plan, trainable=trainable)
        except MemoryError:
            failures += 1
            assert state_of(made) == before, f"after a failure of operation {failures}"
        else:
            break
    assert failures > 50
    assert state_of(made) != before


class FailAtLine:
    """Traces conversion and raises at its n-th line, once; says where, and whether all was done by then."""

    def __init__(self, n: int) -> None:
        self.left = n
        self.place = ""
        self.done = False
        source = (Path(HERE) / "converting.py").read_text().splitlines()
        self.commit = next(i for i, line in enumerate(source, 1) if "pop_all()" in line)

    def __call__(self, frame: FrameType, event: str, arg: object) -> Any:
        file, line = frame.f_code.co_filename, frame.f_lineno
        if not file.startswith(HERE):
            return None
        if event == "line":
            self.left -= 1
            if self.left == 0:
                self.place = f"{Path(file).name}:{line}"
                raise MemoryError("injected")
            self.done |= file.endswith("converting.py") and line == self.commit
        return self


def test_convert_is_all_or_nothing_at_every_line_of_it() -> None:
    made = model()
    plan = plan_for(made, Unstructured())
    convert(made, plan_for(made, Unstructured(), skip=("",)))  # what is learned of classes is remembered
    before, previous, places = state_of(made), sys.gettrace(), set()
    for n in count(1):
        fail = FailAtLine(n)
        try:
            sys.settrace(fail)
            convert(made, plan)
        except MemoryError:
            sys.settrace(previous)
            if fail.done:
                break
            places.add(fail.place)
            assert state_of(made) == before, f"after a failure at {fail.place}"
        finally:
            sys.settrace(previous)
    assert len(places) > 60
    assert state_of(made) != before


def test_a_swap_by_other_values_gives_the_old_ones_back() -> None:
    made = model()
    before = state_of(made)
    for meta in (False, True):
        place = nn.Sequential(copy.deepcopy(made)).to("meta" if meta else "cpu")
        old = place.get_parameter("0.1.0.weight")
        layer = next(layer for layer in find_layers(place) if layer.name == "0.1.0")
        swap = Swap(place, layer, linear_of(BitmapMatrix.from_dense(torch.randn(8, 8))))
        swap.apply()
        assert old.numel() == 0
        swap.undo()
        assert old.shape == (8, 8)
        assert place.get_parameter("0.1.0.weight") is old
        assert meta or torch.equal(old, made.get_parameter("1.0.weight"))
    assert state_of(made) == before


def test_an_interrupt_rolls_back_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    made = model()
    before = state_of(made)
    apply, calls = Swap.apply, []

    def interrupted(self: Swap) -> None:
        apply(self)
        calls.append(self)
        if len(calls) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(Swap, "apply", interrupted)
    with pytest.raises(KeyboardInterrupt):
        convert(made, plan_for(made, Unstructured()))
    assert state_of(made) == before


def test_a_failed_second_conversion_leaves_the_first_one() -> None:
    made = model()
    convert(made, plan_for(made, Unstructured()))
    before = state_of(made)
    plan = plan_for(made, Unstructured())
    for n in (5, 25, 45, 65):
        with pytest.raises(MemoryError), FailAt(n):
            convert(made, plan)
        assert state_of(made) == before
    assert not any(isinstance(choice.stored, NM) for choice in plan.choices)
