"""The values that pass between the history and its changelog."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from xgr_stream.history.sources import SourcePosition

FIRST_LIFE = -1
"""The life of a user who was never forgotten. To be forgotten begins another one, named by the offset of the record
that did it: numbers start anew in it, and records of an earlier life count no more, however late they are written."""


class Applied(NamedTuple):
    """An event that went into a history."""

    number: int
    """How many events of the user came before it."""
    sealed: int | None
    """The segment that this event completed, if it did: events `sealed * segment_events` up to this one."""
    life: int = FIRST_LIFE
    source: SourcePosition | None = None
    """Of a copy."""


Numbered = tuple[str, int] | tuple[str, int, int]


class Delta(NamedTuple):
    """One event, as the changelog holds it until its segment is sealed."""

    offset: int
    item_id: str
    action: str | None
    sources: Sequence[SourcePosition] = ()
    """What the event is a copy of."""


class Segment(NamedTuple):
    """`segment_events` consecutive events of a user."""

    last_offset: int
    """Offset of the last of them."""
    items: Sequence[str]
    actions: Sequence[str | None] | None
    """One per item; None: none of them has one."""
    sources: Sequence[SourcePosition] = ()
    """The watermarks that the user held with the last of them."""


@dataclass(slots=True)
class Stale:
    """Keys (user, number), of a later life (user, number, life), still in a changelog whose content a later record has
    made superfluous."""

    deltas: set[Numbered] = field(default_factory=set)
    segments: set[Numbered] = field(default_factory=set)
    forgets: set[tuple[bytes, int]] = field(default_factory=set)
    """(digest of the user, offset) of what made a user forgotten before they were forgotten again."""


def numbered(user_id: str, number: int, life: int) -> Numbered:
    """The key of a delta or a segment."""
    return (user_id, number) if life == FIRST_LIFE else (user_id, number, life)


def user_digest(user_id: str) -> bytes:
    """What is kept of a forgotten user, so that nothing written late brings them back."""
    return hashlib.sha256(user_id.encode("utf-8", "surrogatepass")).digest()[:16]


def user_hash(user_id: str) -> str:
    """How logs and errors name a user: user ids themselves are personal data."""
    return hashlib.sha256(user_id.encode("utf-8", "surrogatepass")).hexdigest()[:12]
