"""The values that pass between the history and its changelog."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple


class Applied(NamedTuple):
    """An event that went into a history."""

    number: int
    """How many events of the user came before it."""
    sealed: int | None
    """The segment that this event completed, if it did: events `sealed * segment_events` up to this one."""


class Delta(NamedTuple):
    """One event, as the changelog holds it until its segment is sealed."""

    offset: int
    item_id: str
    action: str | None


class Segment(NamedTuple):
    """`segment_events` consecutive events of a user."""

    last_offset: int
    """Offset of the last of them."""
    items: Sequence[str]
    actions: Sequence[str | None] | None
    """One per item; None: none of them has one."""


@dataclass(slots=True)
class Stale:
    """Keys (user, number) still in a changelog whose content a later record has made superfluous."""

    deltas: set[tuple[str, int]] = field(default_factory=set)
    segments: set[tuple[str, int]] = field(default_factory=set)


def user_hash(user_id: str) -> str:
    """How logs and errors name a user: user ids themselves are personal data."""
    return hashlib.sha256(user_id.encode("utf-8", "surrogatepass")).hexdigest()[:12]
