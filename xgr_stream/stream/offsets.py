"""Which offset of a partition may be committed: the end of its unbroken run of acknowledged records."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Set

from xgr_stream.stream.progress import Progress


class OffsetTracker:
    """Offsets taken in from one topic partition, and how far they have been acknowledged without a gap.

    Offsets come in rising order but need not be consecutive (compaction and transactions leave holes). A broker that
    redelivers is met here: an offset that was already taken is not taken again.
    """

    __slots__ = ("_acknowledged", "_ahead", "_committable", "_last_taken", "_open")

    def __init__(self) -> None:
        self._open: deque[int] = deque()
        self._acknowledged: set[int] = set()
        self._last_taken = -1
        self._committable: int | None = None
        self._ahead: set[int] = set()
        """Done by an earlier owner of the partition, and still to come again."""

    def begin(self, progress: Progress) -> None:
        """Go on from what was committed: nothing before it is taken, and nothing that was done ahead of it."""
        self._last_taken = progress.offset - 1
        self._ahead = set(progress.done)

    def take(self, offset: int) -> bool:
        """Note that the record at `offset` is being worked on. False: it was taken or done before, leave it alone."""
        if offset <= self._last_taken:
            return False
        self._last_taken = offset
        self._open.append(offset)
        if offset in self._ahead:
            self._ahead.discard(offset)
            self.acknowledge(offset)
            return False
        return True

    def acknowledge(self, offset: int) -> None:
        """Note that everything the record at `offset` caused is durable. Offsets that are not open are ignored."""
        waiting, acknowledged = self._open, self._acknowledged
        if not waiting or offset < waiting[0]:
            return
        if offset != waiting[0]:
            acknowledged.add(offset)
            return
        waiting.popleft()
        self._committable = offset + 1
        while waiting and waiting[0] in acknowledged:
            done = waiting.popleft()
            acknowledged.discard(done)
            self._committable = done + 1

    def acknowledge_all(self, offsets: Iterable[int]) -> None:
        """`acknowledge` for each; nearly always they are the next ones that are open."""
        waiting, popleft = self._open, self._open.popleft
        for offset in offsets:
            if waiting and waiting[0] == offset and not self._acknowledged:
                popleft()
                self._committable = offset + 1
            else:
                self.acknowledge(offset)

    def progress(self, written: Iterable[int] = ()) -> Progress | None:
        """How far everything would be done if the records at `written` were acknowledged too; None before anything was
        taken."""
        if self._last_taken < 0:
            return None
        done: Set[int] = self._acknowledged.union(written)
        first_open = next((offset for offset in self._open if offset not in done), self._last_taken + 1)
        ahead = frozenset(offset for offset in (*done, *self._ahead) if offset > first_open)
        return Progress(first_open, ahead)

    @property
    def committable(self) -> int | None:
        """The offset to commit (of the next record to read, as Kafka counts), None before any is acknowledged."""
        return self._committable

    @property
    def last_taken(self) -> int:
        """The last offset taken, -1 before any."""
        return self._last_taken

    def done(self, offset: int) -> bool:
        """Whether everything taken up to `offset` has been acknowledged."""
        return not self._open or self._open[0] > offset

    @property
    def pending(self) -> int:
        """Records taken and not yet behind `committable`."""
        return len(self._open)
