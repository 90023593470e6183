"""Repeated messages are logged once in a while, others always."""

from __future__ import annotations

import logging

from xgr_stream.cli.logs import QUIET_S, REMEMBERED, Repeats


class Log:
    """A filter with a clock that is set by hand, and what came through it."""

    def __init__(self) -> None:
        self.now = 100.0
        self._filter = Repeats(lambda: self.now)

    def __call__(self, text: str, *arguments: object, name: str = "aiokafka") -> str | None:
        record = logging.LogRecord(name, logging.WARNING, "", 0, text, arguments, None)
        return record.getMessage() if self._filter.filter(record) else None


def test_a_message_comes_through_once_in_a_while_and_says_how_often_it_came() -> None:
    log = Log()
    assert log("no node %d", 1) == "no node 1"
    assert [log("no node %d", 1) for _ in range(7)] == [None] * 7
    log.now += QUIET_S + 1
    assert log("no node %d", 1) == "no node 1 (7 times more in 6 s)"
    assert log("no node %d", 1) is None


def test_other_messages_are_not_held_back() -> None:
    log = Log()
    texts = [f"item {n}" for n in range(REMEMBERED + 10)]
    assert [log("item %d", n) for n in range(REMEMBERED + 10)] == texts
    assert log("item 0", name="xgr_stream") == "item 0"
