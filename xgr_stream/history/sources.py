"""Which records of other topics a partition's events are copies of: a watermark for each partition of those."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

MAX_WATERMARKS = 1 << 16
"""Of one partition of events: partitions of all topics that its events are copied from. They are kept for good."""


class SourcePosition(NamedTuple):
    """Of the record that an event is a copy of."""

    topic: str
    partition: int
    offset: int


class Watermark(NamedTuple):
    """The highest position of a source's partition that some history includes."""

    source: SourcePosition
    holder: str | bytes
    """The user whose event it is; their digest, if they were forgotten since."""


class Watermarks:
    """Of one partition of events. Those of a source's partition come in their order, but may come again.

    Each is kept, in the changelog, by its holder alone, so that a segment holds one or two of them and not one for each
    partition of each source: by the delta of the event; or by the last segment behind it, and the record that the
    user was forgotten, if they still are the holder then. If they are not, a later event of another user has taken
    the watermark over, whose records keep it.
    """

    def __init__(self, watermarks: Iterable[Watermark] = ()) -> None:
        self._held: dict[tuple[str, int], tuple[int, str | bytes]] = {}
        self._of_holder: dict[str | bytes, set[tuple[str, int]]] = {}
        for source, holder in watermarks:
            self.note([source], holder)

    def __iter__(self) -> Iterator[Watermark]:
        for (topic, partition), (offset, holder) in sorted(self._held.items()):
            yield Watermark(SourcePosition(topic, partition, offset), holder)

    def __len__(self) -> int:
        return len(self._held)

    def offset(self, topic: str, partition: int) -> int:
        """-1: nothing of it has come."""
        held = self._held.get((topic, partition))
        return -1 if held is None else held[0]

    def note(self, sources: Iterable[SourcePosition], holder: str | bytes) -> None:
        """An event of this user is a copy of these. In any order; of one position a digest counts before an id."""
        for topic, partition, offset in sources:
            known = self._held.get((topic, partition))
            if known is None or offset > known[0] or (offset == known[0] and isinstance(holder, bytes)):
                self._held[topic, partition] = offset, holder
                if known is not None:
                    self._let_go(known[1], (topic, partition))
                self._of_holder.setdefault(holder, set()).add((topic, partition))

    def _let_go(self, holder: str | bytes, place: tuple[str, int]) -> None:
        held = self._of_holder[holder]
        held.discard(place)
        if not held:
            del self._of_holder[holder]

    def has_room(self, topic: str, partition: int) -> bool:
        """Whether one of this source's partition may be kept."""
        return len(self._held) < MAX_WATERMARKS or (topic, partition) in self._held

    def held_by(self, holder: str | bytes) -> Sequence[SourcePosition]:
        """In their order."""
        places = sorted(self._of_holder.get(holder, ()))
        return tuple(SourcePosition(*place, self._held[place][0]) for place in places)

    def forget(self, user_id: str, digest: bytes) -> None:
        """Hold by the digest what the user holds."""
        self.note(self.held_by(user_id), digest)
