"""`xgr-stream doctor` prints what each check found, whatever one of them meets."""

from __future__ import annotations

from typing import Any

import pytest
from click.testing import CliRunner

from xgr_stream.cli import doctor as module
from xgr_stream.cli.main import main
from xgr_stream.stream.finding import Finding


async def broken(*_: Any) -> Any:
    raise ValueError("odd")


async def fine(*_: Any) -> list[Finding]:
    return [Finding("ok", "a broker answers"), Finding("error", "partitions without a leader: user-events-1", "start")]


def test_a_check_of_the_brokers_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "check_brokers", fine)
    monkeypatch.setattr(module, "check_group", broken)
    monkeypatch.setattr(module, "check_transactions", broken)
    result = CliRunner().invoke(main, ["doctor", "--transactional"])
    assert result.exit_code == 1
    for expected in (
        "ok       device cpu",
        "ERROR    partitions without a leader: user-events-1",
        "ERROR    group xgr-stream can't be looked at: ValueError('odd')",
        "ERROR    transactions can't be looked at: ValueError('odd')",
        "3 errors, 1 warnings",
    ):
        assert expected in result.output, result.output


def test_a_check_of_this_machine_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("odd")

    monkeypatch.setattr(module, "_check_device", broken)
    monkeypatch.setattr(module, "_history_plan", broken)
    monkeypatch.setattr(module, "check_brokers", fine)
    monkeypatch.setattr(module, "check_group", fine)
    result = CliRunner().invoke(main, ["doctor"])
    for what in ("the device", "the histories' memory"):
        assert f"ERROR    {what} can't be looked at: RuntimeError('odd')" in result.output, result.output
    assert "partitions without a leader" in result.output
