"""Users whose prefixes are behind their histories, one entry each."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import NamedTuple

from xgr_stream.history import HistoryView

MAX_USERS = 50_000
"""Users who wait at most; beyond it those who have waited longest are left to their next request."""


class _Waiting(NamedTuple):
    view: HistoryView
    since: float


class AppendQueue:
    """Users with a prefix first, each group in the order in which they came. Used by one thread.

    Those without one are many after a restart; kept apart, they are nobody's wait but their own.
    """

    def __init__(self, max_users: int = MAX_USERS) -> None:
        self._max_users = max_users
        self._resident: dict[str, _Waiting] = {}
        self._cold: dict[str, _Waiting] = {}

    def __len__(self) -> int:
        return len(self._resident) + len(self._cold)

    def put(self, view: HistoryView, resident: bool, now: float) -> int:
        """Have the user brought up to this view, at the place that they had. Returns how many users were let go."""
        mine, other = (self._resident, self._cold) if resident else (self._cold, self._resident)
        waited = other.pop(view.user_id, None) or mine.get(view.user_id)
        mine[view.user_id] = _Waiting(view, now if waited is None else waited.since)
        shed = len(self) - self._max_users
        for _ in range(shed):
            users = self._cold or self._resident
            del users[next(iter(users))]
        return max(0, shed)

    def first(self, count: int) -> list[HistoryView]:
        """The next users, of one group."""
        return [waiting.view for waiting in islice((self._resident or self._cold).values(), count)]

    def turned_out(self, user_ids: Iterable[str]) -> None:
        """These users have no prefix any more: they go behind those who never had one."""
        for user_id in user_ids:
            waiting = self._resident.pop(user_id, None)
            if waiting is not None:
                self._cold[user_id] = waiting

    @property
    def since(self) -> float:
        """Since when the next user who has a prefix waits; infinite if there is none."""
        return next((waiting.since for waiting in self._resident.values()), float("inf"))

    def remove(self, user_ids: Iterable[str]) -> None:
        for user_id in user_ids:
            self._resident.pop(user_id, None)
            self._cold.pop(user_id, None)

    def clear(self) -> int:
        """Let all go; how many that were."""
        count = len(self)
        self._resident.clear()
        self._cold.clear()
        return count
