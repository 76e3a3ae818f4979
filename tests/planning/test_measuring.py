"""What is built for timing is packed once for each packed form, whatever the number of its configurations."""

from __future__ import annotations

import torch
from stand_ins import AddKernel, FakeClock, two_of_four

from ajour.ops import NM_LINEAR
from ajour.planning.candidates import Candidate, Form
from ajour.planning.measuring import Bench, Subject, build
from ajour.terms.pattern import NM


def test_configurations_that_read_one_packed_form_share_it_and_count_it_once(add_kernel: AddKernel) -> None:
    add_kernel(NM_LINEAR, "shares", packing="nm_slabs")  # a packed order that no configuration changes
    add_kernel(NM_LINEAR, "own", packing="panels")
    w = two_of_four(torch.nn.Linear(64, 32)).weight.detach()
    kernels = [(name, config) for name in ("shares", "own") for config in ("c2 s4", "c1 s8")]
    built = build(w, [Candidate(Form(NM(2, 4)), *kernel, (4,)) for kernel in kernels], print)
    assert all(a is b for a, b in zip(built[0].packed, built[1].packed, strict=True))
    assert [each.table.split(" | ")[1] for each in built][:2] == ["* shares 0:2 c2 s4", "* shares 0:2 c1 s8"]
    times = Bench(FakeClock(), 0, 0).times(Subject("layer", w, None), [4], built)
    assert [timed.packing for timed in times.sparse] == ["nm_slabs", "nm_slabs", "panels c2 s4", "panels c1 s8"]
