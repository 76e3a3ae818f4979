"""What is under the plan: this machine's kind, its cache, and whether others were using it."""

from __future__ import annotations

import pytest
import torch

from ajour.planning import device
from ajour.planning.device import Device, OtherWork, last_level_cache, this_device


def test_this_device_is_described_once_and_the_same() -> None:
    here = this_device("cpu")
    assert here == this_device(torch.device("cpu"))
    assert here.type == "cpu"
    assert here.name
    assert here.torch == torch.__version__.split("+")[0]
    assert here.threads == torch.get_num_threads()


def test_a_cpu_has_a_cache_of_some_size() -> None:
    assert 1 << 18 <= last_level_cache("cpu") <= 8 << 30


@pytest.mark.parametrize(("text", "size"), [("32768K\n", 32 << 20), ("48K", 48 << 10), ("1M", 1 << 20), ("512", 512)])
def test_sizes_are_read_as_the_system_writes_them(text: str, size: int) -> None:
    assert device._bytes(text) == size


def test_a_gpu_names_no_threads() -> None:
    assert str(Device("cuda", "NVIDIA H100", "sm_90", "2.13.0", 8)) == "NVIDIA H100 (sm_90, torch 2.13.0)"


@pytest.mark.parametrize(
    ("before", "after", "share"),
    [
        ((100.0, 10.0, 1.0), (110.0, 16.0, 3.0), 0.4),  # 6 s busy, 2 of them ours
        ((100.0, 10.0, 1.0), (110.0, 12.0, 3.0), 0.0),
        ((100.0, 10.0, 1.0), (110.0, 12.0, 3.1), 0.0),  # rounding never makes it negative
        ((100.0, 10.0, 1.0), (100.5, 10.5, 1.0), 0.0),  # too short to tell
    ],
)
def test_others_are_those_who_are_busy_and_not_this_process(
    before: tuple[float, float, float],
    after: tuple[float, float, float],
    share: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(device, "_processor_time", lambda: after)
    assert OtherWork(before).share() == pytest.approx(share)
    assert OtherWork(None).share() == 0.0
