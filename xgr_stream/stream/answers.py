"""Recent answers, so that a request that is delivered again is not computed again."""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

from xgr_stream.scheduler.clock import Clock

MEMORY_BYTES = 64 << 20
"""Answers kept at most: some 60,000 of 1 kB."""


class AnswerKey(NamedTuple):
    """A request id counts for its user alone, since two callers may have chosen the same one, and for its partition:
    where users may be on any, another's has offsets of its own."""

    partition: int
    user_id: str
    request_id: str


class RecentAnswers:
    """Encoded responses of the last `window_ms`, the oldest forgotten first when they take more than `max_bytes`."""

    def __init__(self, window_ms: int, clock: Clock, max_bytes: int = MEMORY_BYTES) -> None:
        self._window_ms = window_ms
        self._clock = clock
        self._max_bytes = max_bytes
        self._answers: OrderedDict[AnswerKey, tuple[int, bytes]] = OrderedDict()
        self._num_bytes = 0

    def remember(self, key: AnswerKey, value: bytes, answered_ms: int) -> None:
        """Keep an answer that was given at `answered_ms` (milliseconds since 1970)."""
        self._forget(key)
        self._answers[key] = (answered_ms + self._window_ms, value)
        self._num_bytes += len(value)
        now_ms = self._clock.wall_ms()
        while self._answers:
            oldest, (expires_ms, _) = next(iter(self._answers.items()))
            if expires_ms > now_ms and self._num_bytes <= self._max_bytes:
                break
            self._forget(oldest)

    def get(self, key: AnswerKey) -> bytes | None:
        """The answer given to this request, None if there was none lately."""
        expires_ms, value = self._answers.get(key, (0, None))
        return value if expires_ms > self._clock.wall_ms() else None

    def drop(self, partition: int) -> None:
        """Forget the answers of a partition that is now somebody else's."""
        for key in [key for key in self._answers if key.partition == partition]:
            self._forget(key)

    def __len__(self) -> int:
        return len(self._answers)

    def _forget(self, key: AnswerKey) -> None:
        _, value = self._answers.pop(key, (0, b""))
        self._num_bytes -= len(value)
