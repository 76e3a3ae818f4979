"""A wrong masked step is found, in the weights and in the state."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ajour.diagnosis.updates import check_updates
from ajour.ops.masked_update.op import MASKED_ADAMW, MASKED_SGD
from ajour.ops.masked_update.update import Update, UpdateOp


@pytest.mark.parametrize("op", [MASKED_ADAMW, MASKED_SGD], ids=lambda op: op.name)
@pytest.mark.parametrize("place", ["weight", "state"])
def test_a_wrong_update_is_found(op: UpdateOp, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = op.kernels["cpu"]

    def wrong(update: Update) -> None:
        kernel.run(update)
        last = update.slices[-1]
        (last.weight if place == "weight" else last.states[-1]).mul_(1.1)

    monkeypatch.setitem(op.kernels, "cpu", replace(kernel, run=wrong))
    (broken,) = (finding for finding in check_updates("cpu") if finding.status == "broken")
    assert broken.subject == f"{op.name} · cpu (cpu)"
    assert broken.found.startswith("wrong at float32, compact: False: ")
