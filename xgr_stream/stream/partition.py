"""The state of one assigned partition."""

from __future__ import annotations

from xgr_stream.stream.offsets import OffsetTracker
from xgr_stream.stream.records import Record


class Partition:
    """One partition number: its events and its requests, from assignment to revocation."""

    __slots__ = ("early", "early_bytes", "events", "events_seen", "held", "number", "outputs", "requests", "restored")

    def __init__(self, number: int) -> None:
        self.number = number
        self.held = True
        """False once revoked: outputs and answers that still come for it are dropped."""
        self.restored = False
        self.early: list[Record] = []
        """Events that came before the history was restored."""
        self.early_bytes = 0
        self.events = OffsetTracker()
        self.requests = OffsetTracker()
        self.outputs = OffsetTracker()
        """What is written for this partition, counted: a snapshot waits for what its history rests on."""
        self.events_seen = -1
        """Offset up to which every event was processed."""
