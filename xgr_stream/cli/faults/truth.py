"""What a run knows to be true: every event that was written, every request, every message that can't be read."""

from __future__ import annotations

from dataclasses import dataclass, field

from xgr_stream.types import RecommendRequest, UserEvent

CORRUPT_HEADER = "soak-corrupt"
"""Header of a message that must become a dead letter; its value says what is wrong with it."""


@dataclass(slots=True)
class Truth:
    """Filled by the load while it writes; the audit holds the topics against it."""

    events: dict[str, list[UserEvent]] = field(default_factory=dict)
    """User → their events, in the order in which they were written. The action holds the number, from 0."""
    requests: dict[str, RecommendRequest] = field(default_factory=dict)
    """By request id."""
    corrupt: int = 0
    """Messages with `CORRUPT_HEADER`."""
    refusable: set[str] = field(default_factory=set)
    """Ids of requests that must get an error response."""

    def next_event(self, user_id: str, item_id: str) -> UserEvent:
        """The user's next event, noted as written."""
        events = self.events.setdefault(user_id, [])
        event = UserEvent(user_id, item_id, f"n{len(events)}")
        events.append(event)
        return event

    @property
    def num_events(self) -> int:
        return sum(map(len, self.events.values()))
