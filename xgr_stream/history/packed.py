"""Users as a snapshot, or a changelog just read, holds them: arrays of a few hundred, unpacked when one is needed.

To make a million histories takes seconds; to have them at hand takes one dictionary of their ids. So they are there at
once, and become histories of their own a chunk at a time, while the worker serves.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from xgr_stream.history.user import UserHistory


@dataclass(frozen=True, slots=True)
class Numbering:
    """What a snapshot's numbers are in this process: item and action of each, -1 where it has none."""

    items: NDArray[np.int32]
    actions: NDArray[np.int16]
    """The last is -1, which no action, -1, picks."""

    @classmethod
    def of(cls, stored: NDArray[np.int32], items: Sequence[int], actions: Sequence[int]) -> Numbering:
        """`items`: what the `stored` numbers are here."""
        numbers = np.full(int(stored.max(initial=-1)) + 1, -1, dtype=np.int32)
        numbers[stored] = items
        return cls(numbers, np.asarray([*actions, -1], dtype=np.int16))


@dataclass(frozen=True, slots=True, eq=False)
class PackedUsers:
    """Some users of one partition. Immutable; arrays [users] and [events], events of a user consecutive."""

    partition: int
    ids: list[str]
    kept: NDArray[np.uint32]
    first_numbers: NDArray[np.int64]
    last_offsets: NDArray[np.int64]
    lives: NDArray[np.int64]
    items: NDArray[np.int32]
    actions: NDArray[np.int16] | None
    """None: no event has one."""
    numbering: Numbering | None
    """None: items and actions have the numbers of this process."""

    @property
    def num_events(self) -> int:
        return len(self.items)

    def unpacked(self) -> Iterator[tuple[str, UserHistory]]:
        """Each user with a history of their own."""
        items, actions = self.items, self.actions
        if self.numbering is not None:
            items = self.numbering.items.take(items)
            actions = None if actions is None else self.numbering.actions.take(actions)
        if actions is None:
            actions = np.full(len(items), -1, dtype=np.int16)
        item_bytes, action_bytes = items.data.cast("B"), actions.data.cast("B")
        join, partition = bytearray().join, self.partition
        columns = (self.kept, self.first_numbers, self.last_offsets, self.lives)
        event = 0
        for user_id, kept, first, last_offset, life in zip(
            self.ids, *(column.tolist() for column in columns), strict=True
        ):
            end = event + kept
            buffer = join((item_bytes[event * 4 : end * 4], action_bytes[event * 2 : end * 2]))
            user = UserHistory(partition, first, life, buffer)
            user.last_offset = last_offset
            yield user_id, user
            event = end
