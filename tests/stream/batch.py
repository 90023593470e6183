"""A double of aiokafka's batch of records."""

from __future__ import annotations

from typing import Any


class Batch:
    """Takes `room` records."""

    def __init__(self, room: int) -> None:
        self.values: list[bytes | None] = []
        self._room = room

    def append(self, *, timestamp: None, key: bytes | None, value: bytes | None, headers: list[Any]) -> object:
        if len(self.values) == self._room:
            return None
        self.values.append(value)
        return self

    def close(self) -> None:
        """Nothing comes any more."""
