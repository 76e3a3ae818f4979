"""A small comparison whose plan is made by hand: both layers are sparse."""

from __future__ import annotations

import pytest
import torch

from ajour.comparison import Comparison, compare
from factories import pruned
from hand_plan import hand_plan


@pytest.fixture(scope="session")
def compared() -> Comparison:
    model = pruned()
    examples = {"4x64": torch.randn(4, 64), "32x64": torch.randn(32, 64)}
    return compare(model, examples, name="small", plan=hand_plan(model), compiled=False, seconds=0.01, progress=False)
