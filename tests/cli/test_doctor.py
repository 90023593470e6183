"""`xgr-stream doctor` prints what each check found, whatever one of them meets."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from xgr_stream.cli import doctor as module
from xgr_stream.cli.main import main
from xgr_stream.config import MIB, EngineConfig
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


def test_room_for_graphs_of_both_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (300 * MIB, 80_000 * MIB))

    def engine(device: str) -> Any:
        hidden = SimpleNamespace(device=torch.device(device))
        return SimpleNamespace(cache=SimpleNamespace(hidden=hidden), config=EngineConfig())

    assert module._room_for_graphs(engine("cpu")) == []
    (fits,), (short,) = module._room_for_graphs(engine("cuda")), module._room_for_graphs(engine("cuda"), engine("cuda"))
    assert (fits.grade, short.grade) == ("ok", "warning")
    assert short.what == "CUDA graphs may take 512 MiB, 300 MiB are free beside the rest"
