"""Packed weights lie on huge pages, take only their own size, and go when they are no longer used."""

from __future__ import annotations

import copy
import gc
import io
import itertools
import os
import pickle
import signal
import weakref
from collections.abc import Callable

import pytest
import torch

from ajour import huge_pages
from ajour.formats import BitmapMatrix
from ajour.memory import resident_bytes
from ajour.nn import BitmapLinear
from ajour.ops import BITMAP_LINEAR

pytestmark = pytest.mark.skipif(not huge_pages._SUPPORTED, reason="this system has no huge pages to ask for")
SIZES = [40 << 10, 3 << 20, 9 << 20, (64 << 20) + 4]  # bytes: two that share, two on their own


@pytest.mark.parametrize("size", SIZES)
def test_a_tensor_is_aligned_and_its_storage_has_its_size(size: int) -> None:
    t = huge_pages.empty(size // 4, torch.float32)
    assert t.data_ptr() % 64 == 0
    assert t.untyped_storage().nbytes() == size
    module = torch.nn.Module()
    module.register_buffer("packed", t)
    assert resident_bytes(module) == size
    assert copy.deepcopy(t).untyped_storage().nbytes() == size


def test_tensors_do_not_overlap() -> None:
    tensors = [huge_pages.empty(size // 4, torch.int32).fill_(i) for i, size in enumerate(SIZES * 4)]
    assert all(bool((t == i).all()) for i, t in enumerate(tensors))


def test_large_tensors_begin_on_a_huge_page_and_ask_for_them() -> None:
    t = huge_pages.empty(8 << 20, torch.uint8).fill_(1)
    assert t.data_ptr() % (2 << 20) == 0
    flags, inside = "", False
    with open("/proc/self/smaps") as maps:
        for line in maps:
            if "-" in line.split()[0] and not line.split()[0].endswith(":"):
                begin, end = (int(part, 16) for part in line.split()[0].split("-"))
                inside = begin <= t.data_ptr() < end
            elif inside and line.startswith("VmFlags"):
                flags = line
    assert " hg" in flags


def test_a_copy_lies_where_the_original_lies() -> None:
    packed, common = huge_pages.empty(1 << 20, torch.bfloat16).normal_(), torch.randn(1 << 20)
    addresses = [each for each in huge_pages._mappings.values() if packed.data_ptr() in each]
    assert len(addresses) == 1
    for original, is_ours in ((packed, True), (common, False)):
        twin = huge_pages.copy(original)
        assert torch.equal(twin, original)
        assert any(twin.data_ptr() in each for each in huge_pages._mappings.values()) == is_ours


def _pickled(module: torch.nn.Module) -> torch.nn.Module:
    made: torch.nn.Module = pickle.loads(pickle.dumps(module))
    return made


def _through_a_file(module: torch.nn.Module) -> torch.nn.Module:
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    made: torch.nn.Module = torch.load(file, weights_only=False)
    return made


@pytest.mark.parametrize("again", [copy.deepcopy, _pickled, _through_a_file])
@pytest.mark.parametrize("inference", [False, True])
def test_a_copied_layer_lies_on_huge_pages_as_the_first_did(
    again: Callable[[torch.nn.Module], torch.nn.Module], inference: bool
) -> None:
    w = torch.randn(768, 768) * (torch.rand(768, 768) < 0.3)
    with torch.inference_mode(inference):
        layer = BitmapLinear(BitmapMatrix.from_dense(w), choices=[(None, "cpu_chunked", "")])
        tied = torch.nn.Sequential(layer, torch.nn.Identity())
        tied[1].register_buffer("same", layer._buffers["packed_0"])
        twin = again(tied)
        assert torch.equal(twin(torch.ones(2, 768)), tied(torch.ones(2, 768)))
    mine, other = tied[0]._buffers, twin[0]._buffers
    assert [_on_huge_pages(t) for t in mine.values()] == [_on_huge_pages(t) for t in other.values()]
    assert any(map(_on_huge_pages, other.values()))
    assert twin[1]._buffers["same"] is other["packed_0"], "tied memory stays tied"
    assert torch.equal(twin[0].matrix().to_dense(), w)


def test_memory_that_processes_share_stays_shared() -> None:
    t = torch.randn(1 << 20).share_memory_()
    before = t.data_ptr()
    huge_pages.settle(t)
    assert (t.data_ptr(), t.is_shared()) == (before, True)


def test_memory_goes_with_its_last_tensor() -> None:
    huge_pages._shared = None
    first, second = (huge_pages.empty(1 << 20, torch.uint8) for _ in range(2))
    assert huge_pages._shared is not None
    extent = huge_pages._shared.memory
    own = huge_pages.empty(9 << 20, torch.uint8)
    [mapping] = [weakref.ref(m) for m, addresses in huge_pages._mappings.items() if own.data_ptr() in addresses]
    del first, own
    gc.collect()
    assert mapping() is None
    assert extent() is not None
    del second
    gc.collect()
    assert extent() is None
    assert huge_pages.empty(1 << 20, torch.uint8).fill_(7).sum() == 7 << 20


def test_small_tensors_stay_in_common_memory() -> None:
    t = huge_pages.empty(100, torch.float32)
    assert not any(t.data_ptr() in each for each in huge_pages._mappings.values())
    assert huge_pages.empty(0, torch.float32).numel() == 0


def test_without_room_for_a_mapping_tensors_are_torch_s_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(huge_pages, "_shared", None)
    monkeypatch.setattr(huge_pages.mmap, "mmap", refuse)
    assert huge_pages.empty(1 << 20, torch.float32).fill_(2).sum() == 2 << 20


def test_a_child_of_fork_can_allocate_whatever_its_parent_was_doing() -> None:
    with huge_pages._lock:
        child = os.fork()
        if child == 0:
            signal.alarm(20)
            os._exit(0 if huge_pages.empty(1 << 20, torch.uint8).numel() == 1 << 20 else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_packing_leaves_no_room_taken_beside_what_it_packed() -> None:
    huge_pages._shared = None
    w = torch.randn(768, 768) * (torch.rand(768, 768) < 0.1)
    matrix = BitmapMatrix.from_dense(w)
    packed = [BITMAP_LINEAR.kernel("cpu_chunked").prepack(matrix, "") for _ in range(4)]
    held = [t for tensors in packed for t in tensors if t.nbytes >= 32 << 10]
    spans = sorted((t.data_ptr(), t.data_ptr() + t.nbytes) for t in held if _on_huge_pages(t))
    assert len(spans) == 8
    assert all(after - end < 128 for (_, end), (after, _) in itertools.pairwise(spans))


def _on_huge_pages(t: torch.Tensor) -> bool:
    return any(t.data_ptr() in each for each in huge_pages._mappings.values())
