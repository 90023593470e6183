"""Copies of users' prefixes in host memory: who has one, and who makes room for whom."""

from __future__ import annotations

from collections.abc import Callable, Container
from dataclasses import dataclass, replace

import numpy as np

from xgr_stream.cache.arena import HostArena
from xgr_stream.cache.extents import Run, behind, joined, num_pages
from xgr_stream.cache.file_tier import FileTier
from xgr_stream.cache.prefix import UserPrefix
from xgr_stream.cache.worth import Worth, WorthQueue
from xgr_stream.errors import EngineError

WRITES_TO_FILE = 4
"""Under way at most: their pages are not free before they are done."""

_NO_PAGES = np.empty(0, dtype=np.int32)


@dataclass(slots=True, eq=False)
class HostCopy:
    """One user's prefix as it was once, in host memory."""

    prefix: UserPrefix
    """It has no pages and -1 for a hidden slot."""
    runs: list[Run]
    """Pages of the arena, in the prefix's order."""
    on_device: bool = False
    """Whether the user has a prefix there, too."""
    holders: int = 0
    """Work under way that reads or writes the pages."""
    written: bool = False
    """Whether it can be read: no write is under way."""
    to_file: bool = False
    """Whether it is being written to the file."""
    gone: bool = False
    """Whether its pages go back once nothing reads or writes them."""

    @property
    def user_id(self) -> str:
        return self.prefix.user_id


@dataclass(frozen=True, slots=True, eq=False)
class Demotion:
    """A copy that is to be made of a prefix on the device."""

    prefix: UserPrefix
    copy: HostCopy
    first_page: int
    """Of the prefix: those before it are in the copy already."""

    @property
    def runs(self) -> list[Run]:
        """Where the pages from `first_page` on go."""
        return behind(self.copy.runs, self.first_page)


class HostTier:
    """User → `HostCopy`. Used by one thread; whoever moves bytes says when it begins and when it is done.

    A copy stays while its user's prefix is on the device again, as long as there is room: turning the user out is then
    free of charge, and after an append only the pages that it touched are copied again. A copy is always of the prefix
    that its user has on the device, or of one that this one was appended to. Copies of users who have none there make
    room by worth, and go to the file if there is one.
    """

    def __init__(
        self,
        arena: HostArena,
        worth: Worth,
        rebuild_cost: Callable[[int], float],
        *,
        file: FileTier | None = None,
        reserve_pages: int = 0,
    ) -> None:
        """`rebuild_cost(num_tokens)`: what computing a prefix anew costs, in the unit of `worth`. `reserve_pages`:
        kept free by writing the least worthy to the file, ahead of need."""
        self.arena = arena
        self.file = file
        self.dropped = 0
        """Copies that made room for others and went nowhere."""
        self._worth = worth
        self._rebuild_cost = rebuild_cost
        self._reserve_pages = reserve_pages
        self._copies: dict[str, HostCopy] = {}
        self._gone: set[HostCopy] = set()
        self._queue = WorthQueue()
        """Those who have a copy and no prefix on the device."""
        self._spare: dict[str, None] = {}
        """Those who have both, and are not the next to be turned out: the first to lose their copies."""
        self._to_file = 0
        """Copies that are being written to the file."""
        self._from_file: dict[str, HostCopy] = {}

    def __len__(self) -> int:
        """Users who have a copy and no prefix on the device."""
        return len(self._queue)

    def __contains__(self, user_id: object) -> bool:
        return user_id in self._copies

    @property
    def bytes_used(self) -> int:
        return (self.arena.num_pages - self.arena.free.num_free) * self.arena.page_bytes

    @property
    def bytes_budget(self) -> int:
        return self.arena.num_pages * self.arena.page_bytes

    def bytes_of(self, user_id: str) -> int:
        """Host memory of the user's copies, one on its way from the file included."""
        copies = (self._copies.get(user_id), self._from_file.get(user_id))
        return self.arena.page_bytes * sum(num_pages(copy.runs) for copy in copies if copy is not None)

    def get(self, user_id: str) -> HostCopy | None:
        """The user's copy, if it can be read now. Safe on any thread: what it says may then be out of date."""
        copy = self._copies.get(user_id)
        return copy if copy is not None and copy.written else None

    def is_coming(self, user_id: str) -> bool:
        """Whether the user's copy is being read from the file."""
        return user_id in self._from_file

    # What happens to users on the device.

    def arrived(self, user_id: str) -> None:
        """The user has a prefix on the device, of which the copy is one, and is not about to be turned out."""
        copy = self._copies.get(user_id)
        if copy is not None:
            copy.on_device = True
            self._queue.remove(user_id)
            self._spare[user_id] = None

    def leaving(self, user_id: str) -> None:
        """The user is among the next to be turned out: the copy is needed."""
        self._spare.pop(user_id, None)

    def left(self, user_id: str) -> None:
        """The user's prefix is gone from the device; the copy is what is left."""
        self._spare.pop(user_id, None)
        copy = self._copies.get(user_id)
        if copy is not None and copy.written:
            copy.on_device = False
            self._enqueue(copy)
        elif copy is not None:
            self._drop(copy)

    def touch(self, user_id: str) -> None:
        """The user was seen."""
        copy = self._copies.get(user_id)
        if copy is not None:
            self._enqueue(copy)
        elif self.file is not None:
            self.file.touch(user_id, self._worth_of)

    def discard(self, user_id: str) -> None:
        """No copy of this user is of any use any more, in the file neither."""
        for copy in (self._copies.get(user_id), self._from_file.pop(user_id, None)):
            if copy is not None:
                self._drop(copy)
        if self.file is not None:
            self.file.drop(user_id)

    # Copies of what is on the device, and back.

    def begin(self, prefix: UserPrefix) -> Demotion | None:
        """Room for a copy of a prefix on the device, of which the user's copy, if any, is an earlier one. None: it is
        the same, or under way, or those who would have to make room are worth more."""
        self.leaving(prefix.user_id)  # or room for the new copy might be made by dropping the earlier one
        copy, first_page = self._copies.get(prefix.user_id), 0
        if copy is not None:
            if copy.holders or copy.prefix.kv_tokens == prefix.kv_tokens:
                return None
            first_page = copy.prefix.num_tokens // self.arena.page_size  # the first that was written to since
        held = 0 if copy is None else num_pages(copy.runs)
        more = len(prefix.pages) - held
        if not self._make_room(more, self._worth_of(prefix)):
            return None
        if copy is None:
            copy = self._copies[prefix.user_id] = HostCopy(prefix, self.arena.free.allocate(more), on_device=True)
        elif more:
            copy.runs = joined(copy.runs, self.arena.free.allocate(more, after=copy.runs[-1][1]))
        copy.written = False
        copy.holders += 1
        return Demotion(prefix, copy, first_page)

    def end(self, demotion: Demotion, *, done: bool) -> None:
        """The bytes are there, or not, and nothing writes them any more."""
        copy = demotion.copy
        copy.written = done
        copy.prefix = replace(demotion.prefix, pages=_NO_PAGES, hidden_slot=-1)
        self.release(copy)
        if not done and not copy.gone:
            self._drop(copy)

    def hold(self, copy: HostCopy) -> None:
        """The copy's pages stay until `release`."""
        copy.holders += 1

    def release(self, copy: HostCopy) -> None:
        copy.holders -= 1
        if copy.gone and not copy.holders:
            self._give_back(copy)

    # The file behind.

    def tend(self) -> list[OSError]:
        """Take note of what the file has done, and write to it ahead of need. Returns what failed."""
        if self.file is None:
            return []
        errors = self.file.file.reap()
        while self.arena.free.num_free < self._reserve_pages and self._to_file < WRITES_TO_FILE:
            least = self._queue.pop()
            if least is None:
                break
            worth, user_id = least
            try:
                self._write(self._copies[user_id], worth)
            except BaseException:
                self._queue.put(user_id, worth)
                raise
        return errors

    def fetch(self, user_id: str, is_of_use: Callable[[UserPrefix], bool]) -> None:
        """Begin to bring the user's copy back from the file, if there is one that is of use and room for it; one that
        is of none is dropped."""
        found = None if self.file is None else self.file.readable(user_id)
        if self.file is None or found is None or user_id in self._copies or user_id in self._from_file:
            return
        if not is_of_use(found.prefix):
            self.file.drop(user_id)
            return
        pages = num_pages(found.runs)
        if not self._make_room(pages, self._worth_of(found.prefix)):
            return
        copy = HostCopy(found.prefix, self.arena.free.allocate(pages), holders=1)

        def there(done: bool) -> None:
            copy.holders -= 1
            copy.written = done
            if copy.gone:
                self._give_back(copy)
                return
            del self._from_file[user_id]
            if done:
                self._copies[user_id] = copy
                self._enqueue(copy)
            else:
                self._give_back(copy)

        try:
            self.file.read(found, self.arena, copy.runs, there)
        except BaseException:
            self._give_back(copy)
            raise
        self._from_file[user_id] = copy

    def settle(self) -> list[OSError]:
        """Wait for the file. Returns what failed."""
        return [] if self.file is None else self.file.file.reap(wait=True)

    def _write(self, copy: HostCopy, worth: float) -> None:
        """Begin to move a copy to the file, or drop it if it is not worth it there."""
        file, user_id = self.file, copy.user_id

        def written(done: bool) -> None:
            self._to_file -= 1
            copy.to_file = False
            self.release(copy)
            if copy.gone:
                return
            if copy.on_device:  # it came back meanwhile
                if file is not None:
                    file.drop(user_id)
            else:
                self.dropped += not done
                self._drop(copy)

        if file is not None and file.write(copy.prefix, self.arena, copy.runs, worth, written):
            self._to_file += 1
            copy.to_file = True
            self.hold(copy)
        else:
            self.dropped += 1
            self._drop(copy)

    def _worth_of(self, prefix: UserPrefix) -> float:
        pages = -(-prefix.kv_tokens // self.arena.page_size)
        return self._worth.of(prefix.user_id, self._rebuild_cost(prefix.num_tokens) / pages)

    def _enqueue(self, copy: HostCopy) -> None:
        if not (copy.on_device or copy.to_file):
            self._queue.put(copy.user_id, self._worth_of(copy.prefix))

    def _make_room(self, pages: int, worth: float) -> bool:
        """Drop copies until so many pages are free: spare ones, then those worth less. False: they are not enough, and
        none is dropped."""
        missing, spare = pages - self.arena.free.num_free, []
        for user_id in self._spare:
            if missing <= 0:
                break
            if size := self._pages_given_back(user_id):
                spare.append(user_id)
                missing -= size
        going = self._queue.least_for(missing, self._pages_given_back, below=worth)
        if going is None:
            return False
        self.dropped += len(going)
        for user_id in (*spare, *going):
            self._drop(self._copies[user_id])
        return True

    def _pages_given_back(self, user_id: str) -> int:
        """By dropping the user's copy, at once."""
        copy = self._copies[user_id]
        return 0 if copy.holders else num_pages(copy.runs)

    def _drop(self, copy: HostCopy) -> None:
        if self._copies.get(copy.user_id) is copy:
            del self._copies[copy.user_id]
            self._queue.remove(copy.user_id)
            self._spare.pop(copy.user_id, None)
        copy.gone = True
        if copy.holders:
            self._gone.add(copy)
        else:
            self._give_back(copy)

    def _give_back(self, copy: HostCopy) -> None:
        self._gone.discard(copy)
        self.arena.free.release(copy.runs)

    def check_integrity(self, on_device: Container[str]) -> None:
        """Raise `EngineError` unless pages and queues agree with the copies, and these with who is `on_device`."""
        for user_id, copy in self._copies.items():
            if copy.on_device != (user_id in on_device):
                raise EngineError(f"user {user_id!r} is on the device or not, and their copy says otherwise")
            if num_pages(copy.runs) != -(-copy.prefix.kv_tokens // self.arena.page_size) and not copy.holders:
                raise EngineError(f"user {user_id!r}: {copy.runs} in host memory for {copy.prefix.kv_tokens} tokens")
        alone = {user_id for user_id, copy in self._copies.items() if not copy.on_device}
        if set(self._queue.users()) != {user_id for user_id in alone if not self._copies[user_id].to_file}:
            raise EngineError("the queue of host memory does not name the users who have nothing on the device")
        if not alone.isdisjoint(self._spare) or not self._spare.keys() <= self._copies.keys():
            raise EngineError("a copy in host memory is spare, and there is none, or no other")
        copies = (*self._copies.values(), *self._from_file.values(), *self._gone)
        self.arena.free.check_integrity([run for copy in copies for run in copy.runs])
        if self.file is not None:
            self.file.check_integrity()
