"""Copies of prefixes in a local file, behind those in host memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from xgr_stream.cache.arena import HostArena
from xgr_stream.cache.extents import Run, num_pages
from xgr_stream.cache.page_file import PageFile, Record
from xgr_stream.cache.prefix import UserPrefix
from xgr_stream.cache.worth import WorthQueue
from xgr_stream.errors import EngineError


@dataclass(slots=True, eq=False)
class FileCopy:
    """One user's copy in the file."""

    prefix: UserPrefix
    runs: list[Run]
    record: Record | None = None
    """None: it is being written."""
    reading: bool = False
    gone: bool = False
    """Whether its pages go back once the file's thread is done with them."""


class FileTier:
    """User → `FileCopy`, the least worthy dropped for the worthier. Used by one thread; the file has its own."""

    def __init__(self, file: PageFile) -> None:
        self.file = file
        self.written = 0
        self.read_back = 0
        """Copies, since the tier was made."""
        self.failed = 0
        """Writes and reads that failed, damaged copies included: the user is computed anew."""
        self._copies: dict[str, FileCopy] = {}
        self._gone: set[FileCopy] = set()
        self._queue = WorthQueue()

    def __len__(self) -> int:
        return len(self._copies)

    def __contains__(self, user_id: object) -> bool:
        return user_id in self._copies

    @property
    def bytes_used(self) -> int:
        return (self.file.free.size - self.file.free.num_free) * self.file.page_bytes

    @property
    def bytes_budget(self) -> int:
        return self.file.free.size * self.file.page_bytes

    def bytes_of(self, user_id: str) -> int:
        return 0 if user_id not in self._copies else self._pages_of(user_id) * self.file.page_bytes

    def _pages_of(self, user_id: str) -> int:
        return num_pages(self._copies[user_id].runs)

    def write(
        self, prefix: UserPrefix, arena: HostArena, runs: list[Run], worth: float, then: Callable[[bool], None]
    ) -> bool:
        """Begin to write what is in these pages of the arena, which must stay as they are until `then` is called with
        whether it is written. False: nothing that it could replace is worth less."""
        views = arena.views(runs)
        self.drop(prefix.user_id)
        pages = num_pages(runs)
        going = self._queue.least_for(pages - self.file.free.num_free, self._pages_of, below=worth)
        if going is None:
            return False
        for user_id in going:
            self.drop(user_id)
        copy = FileCopy(prefix, self.file.free.allocate(pages))

        def written(record: Record | None) -> None:
            self.failed += record is None
            self.written += record is not None
            copy.record = record
            if record is None and not copy.gone:
                self._forget(copy)
            if copy.gone:
                self._give_back(copy)
            else:
                self._queue.put(prefix.user_id, worth)
            then(not copy.gone)

        try:
            self.file.write(views, copy.runs, written)
        except BaseException:
            self._give_back(copy)
            raise
        self._copies[prefix.user_id] = copy
        return True

    def readable(self, user_id: str) -> FileCopy | None:
        """The user's copy if it can be read now."""
        copy = self._copies.get(user_id)
        return copy if copy is not None and copy.record is not None and not copy.reading else None

    def read(self, copy: FileCopy, arena: HostArena, runs: list[Run], then: Callable[[bool], None]) -> None:
        """Begin to bring a readable copy to these pages of the arena, which nobody may use until `then` is called with
        whether it is there. The copy leaves the file, whatever comes of it."""
        if copy.record is None or copy.reading:
            raise EngineError(f"the copy of user {copy.prefix.user_id!r} can't be read now")

        def there(record: Record | None) -> None:
            self.failed += record is None
            self.read_back += record is not None
            copy.reading = False
            wanted = record is not None and not copy.gone
            if not copy.gone:
                self._forget(copy)
            self._give_back(copy)
            then(wanted)

        self.file.read(arena.views(runs), copy.runs, copy.record, there)
        copy.reading = True
        self._queue.remove(copy.prefix.user_id)

    def touch(self, user_id: str, worth_of: Callable[[UserPrefix], float]) -> None:
        """The user was seen: what their copy is worth has changed."""
        copy = self._copies.get(user_id)
        if copy is not None and user_id in self._queue:
            self._queue.put(user_id, worth_of(copy.prefix))

    def drop(self, user_id: str) -> None:
        """Forget the user's copy, if there is one."""
        copy = self._copies.get(user_id)
        if copy is not None:
            self._drop(copy)

    def _drop(self, copy: FileCopy) -> None:
        self._forget(copy)
        if copy.record is None or copy.reading:
            self._gone.add(copy)
        else:
            self._give_back(copy)

    def _forget(self, copy: FileCopy) -> None:
        del self._copies[copy.prefix.user_id]
        self._queue.remove(copy.prefix.user_id)
        copy.gone = True

    def _give_back(self, copy: FileCopy) -> None:
        self._gone.discard(copy)
        self.file.free.release(copy.runs)

    def check_integrity(self) -> None:
        """Raise `EngineError` unless pages and queue agree with the copies."""
        held = [run for copy in (*self._copies.values(), *self._gone) for run in copy.runs]
        self.file.free.check_integrity(held)
        idle = {user_id for user_id, copy in self._copies.items() if copy.record is not None and not copy.reading}
        if set(self._queue.users()) != idle:
            raise EngineError("the file's queue does not name the users whose copies are in it")
