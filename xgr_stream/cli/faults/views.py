"""The application's topic of which a run's events may be copies: JSON objects, keyed by session."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from xgr_stream.stream.records import Record
from xgr_stream.stream.source_header import source_of
from xgr_stream.types import UserEvent


@dataclass(frozen=True, slots=True)
class Views:
    """The application's topic of which the events are copies."""

    topic: str
    partitions: int


def view(user_id: str, item_id: str, action: str | None) -> bytes:
    """A record of the application's that is an event."""
    return json.dumps({"viewer": user_id, "page": {"item": item_id}, "what": action}).encode()


def glance() -> bytes:
    """One that is none."""
    return json.dumps({"viewer": "user-0", "page": {}}).encode()


def event_of(fields: dict[str, Any]) -> UserEvent | None:
    """What the application's function makes of a record's value. Raises `KeyError` for one of another form."""
    item_id = fields["page"].get("item")
    return None if item_id is None else UserEvent(fields["viewer"], item_id, fields["what"])


class FirstCopies:
    """Tells the events that count from copies that were written again."""

    def __init__(self) -> None:
        self._copied: dict[tuple[int, str, int], int] = {}

    def counts(self, record: Record) -> bool:
        """Of all records of the events topic, each partition's in offset order. One counts that is no copy; of copies
        those whose original is behind all that were copied of its partition before."""
        source = source_of(record.headers)
        if source is None:
            return True
        origin = record.partition, source.topic, source.partition
        if source.offset <= self._copied.get(origin, -1):
            return False
        self._copied[origin] = source.offset
        return True
