"""What the compiled part is given to read is plain, contiguous, aligned memory of the host."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from ajour import memory
from ajour.memory import on_host, packable, packer, why_unreadable


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


class OnCard:
    """What is asked of a CUDA tensor before anything is packed."""

    is_cuda, device = True, torch.device("cuda:1")

    def get_device(self) -> int:
        return 1


def test_a_weight_is_packed_where_it_lies_on_the_stream_of_its_device(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[object, ...]] = []
    monkeypatch.setattr(memory.native, "pack_nm_cuda", lambda *given: calls.append(given), raising=False)
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda device: 70 + device, raising=False)
    packer("pack_nm", OnCard())("layout", 16)  # type: ignore[arg-type]
    assert calls == [("layout", 16, 1, 71)]
    assert packer("pack_nm", torch.ones(1)) is memory.native.pack_nm


@pytest.mark.parametrize(("has_cuda", "capability"), [(False, (9, 0)), (True, (7, 5))])
def test_without_code_for_its_card_a_weight_is_packed_on_the_host(
    has_cuda: bool, capability: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "HAS_CUDA", has_cuda)
    monkeypatch.setattr(memory, "on_host", lambda t: "on the host")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert packable(OnCard()) == "on the host"  # type: ignore[arg-type, comparison-overlap]
