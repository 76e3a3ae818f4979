"""Waiting adds up what the system says of each thread, and is 0 where it says nothing."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from ajour.planning import waiting
from ajour.planning.waiting import Waiting


def _task(folder: Path, name: str, text: str) -> Path:
    (folder / name).mkdir()
    (folder / name / "schedstat").write_text(text)
    return folder / name / "schedstat"


def test_all_threads_are_added_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "_TASKS", tmp_path)
    first, _ = _task(tmp_path, "1", "500 2000000 7\n"), _task(tmp_path, "2", "500 1500 7\n")
    with Waiting() as waited:
        assert waited() == 2001.5
        first.write_text("900 5000000 8\n")
        assert waited() == 5001.5


def test_a_system_that_says_nothing_is_taken_as_quiet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in (tmp_path, tmp_path / "none"):
        monkeypatch.setattr(waiting, "_TASKS", folder)
        with Waiting() as waited:
            assert waited() == 0.0
    (tmp_path / "3").mkdir()  # a kernel without statistics has the thread and not the file
    monkeypatch.setattr(waiting, "_TASKS", tmp_path)
    with Waiting() as waited:
        assert waited() == 0.0


def test_a_thread_that_ends_meanwhile_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "_TASKS", Path("/proc/self/task"))
    end = threading.Event()
    thread = threading.Thread(target=end.wait)
    thread.start()
    with Waiting() as waited:
        before = waited()
        end.set()
        thread.join()
        assert waited() >= 0.0 <= before
