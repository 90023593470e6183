"""A static member ends when another one has its name, and does not when nobody has."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka.errors import UnknownMemberIdError
from aiokafka.protocol.group import HeartbeatRequest

from xgr_stream.errors import Fenced
from xgr_stream.stream import group_member
from xgr_stream.stream.group_member import end_when_taken_over

HEARTBEAT = HeartbeatRequest("group", 1, "member")


class Broker:
    """Answers heartbeats with these (seconds that the answer takes, code), one after the other."""

    def __init__(self, *answers: tuple[float, int]) -> None:
        self.answers = list(answers)
        self.now = 100.0

    async def send(self, node_id: int, request: Any) -> Any:
        seconds, code = self.answers.pop(0)
        self.now += seconds
        return SimpleNamespace(error_code=code)


def consumer(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(group_member.time, "monotonic", lambda: broker.now)
    found: Any = SimpleNamespace(_client=SimpleNamespace(send=broker.send))
    end_when_taken_over(found, "a", 10_000)
    return found


async def test_unknown_at_once_is_another_ones_doing(monkeypatch: pytest.MonkeyPatch) -> None:
    broker = Broker((0.1, 0), (3.0, UnknownMemberIdError.errno))
    client = consumer(broker, monkeypatch)._client
    await client.send(1, HEARTBEAT)
    with pytest.raises(Fenced, match="joined the group as a"):
        await client.send(1, HEARTBEAT)


async def test_an_answer_that_lay_unread_for_a_session_says_nothing_of_now(monkeypatch: pytest.MonkeyPatch) -> None:
    broker = Broker((12.0, 0), (0.3, UnknownMemberIdError.errno))
    client = consumer(broker, monkeypatch)._client
    await client.send(1, HEARTBEAT)
    assert (await client.send(1, HEARTBEAT)).error_code == UnknownMemberIdError.errno
