"""A thread's timer slack: set, told, and left alone where there is none."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from xgr_stream.scheduler import timer_slack
from xgr_stream.scheduler.timer_slack import EXACT_NS, PATIENT_NS, set_timer_slack


def told(thread: int) -> int:
    return int(Path(f"/proc/{thread}/timerslack_ns").read_text())


@pytest.mark.skipif(not Path("/proc/self/timerslack_ns").exists(), reason="this system has no timer slack")
def test_it_is_set_for_the_calling_thread_alone() -> None:
    here, found = threading.get_native_id(), []
    before = told(here)

    def elsewhere() -> None:
        set_timer_slack(EXACT_NS)
        found.append((told(threading.get_native_id()), told(here)))
        found.append((set_timer_slack(PATIENT_NS), told(threading.get_native_id())))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert found == [(EXACT_NS, before), (EXACT_NS, PATIENT_NS)]
    assert told(here) == before


def test_a_system_without_it_is_left_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(timer_slack, "Path", lambda _: tmp_path / "none")
    assert set_timer_slack(EXACT_NS) is None
    assert list(tmp_path.iterdir()) == []
