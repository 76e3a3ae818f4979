"""What the compiled part is given to read is plain, contiguous, aligned memory of the host."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from ajour.memory import on_host, why_unreadable


def test_a_plain_tensor_is_lent_without_a_copy() -> None:
    t = torch.randn(3, 4)
    assert why_unreadable(t) is None
    assert on_host(t).data_ptr() == t.data_ptr()
    assert why_unreadable(torch.nn.Parameter(t)) is None
    assert on_host(torch.nn.Parameter(t)).data_ptr() == t.data_ptr()


def test_strided_and_misaligned_tensors_are_copied() -> None:
    t = torch.randn(4, 3)
    assert on_host(t.t()).is_contiguous()
    assert torch.equal(on_host(t.t()), t.t())
    raw = torch.frombuffer(bytearray(b"x" + t.numpy().tobytes()), dtype=torch.float32, offset=1)
    assert raw.data_ptr() % 4
    assert on_host(raw).data_ptr() % 4 == 0
    assert torch.equal(on_host(raw), t.flatten())


def test_what_has_no_memory_of_its_own_is_named() -> None:
    with FakeTensorMode():
        fake = torch.empty(2, 2)
    cases = (
        (torch.empty(2, 2, device="meta"), "is on the meta device, without values; load them first"),
        (torch.eye(2).to_sparse(), "has the layout torch.sparse_coo; make it a plain one"),
        (fake, "is a FakeTensor, whose values are kept elsewhere; make it a plain tensor"),
    )
    for tensor, match in cases:
        reason = why_unreadable(tensor)
        assert reason is not None
        assert match in reason


@pytest.mark.unpoisoned
def test_a_tensor_with_a_graph_is_lent_without_it() -> None:
    t = torch.randn(3, 4, requires_grad=True) * 2
    assert not on_host(t).requires_grad
    assert torch.equal(on_host(t), t.detach())
