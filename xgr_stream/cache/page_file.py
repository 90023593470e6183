"""A local file of pages, written and read on a thread of its own."""

from __future__ import annotations

import os
import tempfile
import threading
import weakref
import zlib
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from queue import SimpleQueue

from xgr_stream.cache.extents import Extents, Run
from xgr_stream.errors import ConfigError

STOP_S = 10.0
"""How long the end of a file waits for what is under way."""


@dataclass(frozen=True, slots=True)
class Record:
    """What was written, and how it is told that it is what is read."""

    length: int
    checksum: int


@dataclass(frozen=True, slots=True)
class Finished:
    """A write or read that ended."""

    then: Callable[[Record | None], None]
    record: Record | None
    """None: it failed."""
    error: OSError | None


class PageFile:
    """A file of `num_pages` pages, preallocated, readable for its owner alone, and without a name from the start, so
    that nothing of it is left when the process ends, however it ends.

    `write` and `read` return at once; `then` is called by `reap`, on the caller's thread, once they are done.
    """

    def __init__(self, directory: str, num_pages: int, page_bytes: int) -> None:
        self.page_bytes = page_bytes
        self.under_way = 0
        try:
            # O_TMPFILE where there is such a thing, else unlinked at once; mode 0600 either way.
            self._file = tempfile.TemporaryFile(dir=directory, buffering=0)  # noqa: SIM115, it is kept open
            os.posix_fallocate(self._file.fileno(), 0, max(1, num_pages * page_bytes))
        except (OSError, OverflowError) as error:
            size = num_pages * page_bytes
            raise ConfigError(
                f"cache.file_directory must be a directory with {size} bytes free (cache.file_bytes), not "
                f"{directory!r}: {error}"
            ) from error
        self.free = Extents("pages of the file", num_pages)
        self._jobs: SimpleQueue[Callable[[], Finished | None] | None] = SimpleQueue()
        self._finished: deque[Finished] = deque()
        self._thread = threading.Thread(
            target=_work, args=(self._jobs, self._finished), name="xgr-file-tier", daemon=True
        )
        self._thread.start()
        weakref.finalize(self, _stop, self._jobs, self._thread)

    def fileno(self) -> int:
        return self._file.fileno()

    def write(self, views: Sequence[memoryview], runs: Sequence[Run], then: Callable[[Record | None], None]) -> None:
        """Write these bytes, which must stay as they are until `then`, to these pages."""
        self._start(lambda: write_all(self._file.fileno(), views, self._places(runs)), then)

    def read(
        self, views: Sequence[memoryview], runs: Sequence[Run], record: Record, then: Callable[[Record | None], None]
    ) -> None:
        """Fill these views, which nobody else may use until `then`, with what was written to these pages."""

        def checked() -> Record:
            found = read_all(self._file.fileno(), views, self._places(runs))
            if found != record:
                raise OSError(f"a cached prefix in the file is damaged: {found} was read, {record} was written")
            return found

        self._start(checked, then)

    def reap(self, *, wait: bool = False) -> list[OSError]:
        """Call `then` of what has ended; with `wait`, of everything. Returns what failed."""
        errors = []
        while self.under_way and (self._finished or wait):
            if not self._finished:
                passed = threading.Event()
                self._jobs.put(passed.set)
                passed.wait()
                continue
            finished = self._finished.popleft()
            self.under_way -= 1
            if finished.error is not None:
                errors.append(finished.error)
            finished.then(finished.record)
        return errors

    def _start(self, job: Callable[[], Record], then: Callable[[Record | None], None]) -> None:
        def run() -> Finished:
            try:
                return Finished(then, job(), None)
            except OSError as error:
                return Finished(then, None, error)
            except Exception as error:  # noqa: BLE001, or its thread ended, and whoever waits for it would for ever
                return Finished(then, None, OSError(f"the file of cached prefixes failed: {error!r}"))

        self._jobs.put(run)
        self.under_way += 1

    def _places(self, runs: Sequence[Run]) -> list[tuple[int, int]]:
        """(offset, bytes) of each run."""
        return [(first * self.page_bytes, (stop - first) * self.page_bytes) for first, stop in runs]


def _stop(jobs: SimpleQueue[Callable[[], Finished | None] | None], thread: threading.Thread) -> None:
    """At the file's end or the interpreter's, which should not take itself down under a thread that is at work, but
    does not wait for ever for a disk that does not answer."""
    jobs.put(None)
    if thread is not threading.current_thread():
        thread.join(STOP_S)


def _work(jobs: SimpleQueue[Callable[[], Finished | None] | None], finished: deque[Finished]) -> None:
    while (job := jobs.get()) is not None:
        result = job()
        if result is not None:
            finished.append(result)
        del job, result  # they lead to the file and to all that is behind it, which would live on while this waits


def write_all(fd: int, views: Sequence[memoryview], places: Sequence[tuple[int, int]]) -> Record:
    """Write the views, one behind the other, to these places (offset, bytes) of a file. Raises `OSError`."""
    return _transfer(lambda view, offset: os.pwrite(fd, view, offset), views, places)


def read_all(fd: int, views: Sequence[memoryview], places: Sequence[tuple[int, int]]) -> Record:
    """The reverse of `write_all`. Raises `OSError`, for a file that ends too early, too."""
    return _transfer(lambda view, offset: os.preadv(fd, [view], offset), views, places)


def _transfer(
    step: Callable[[memoryview, int], int], views: Sequence[memoryview], places: Sequence[tuple[int, int]]
) -> Record:
    length = checksum = 0
    rest = iter(places)
    offset, room = next(rest)
    for view in views:
        left = view
        while left:
            if not room:
                offset, room = next(rest)
            moved = step(left[:room], offset)
            if not moved:
                raise OSError(f"the file ends at {offset}, {len(left)} bytes of a cached prefix too early")
            offset, room, left = offset + moved, room - moved, left[moved:]
        length += view.nbytes
        checksum = zlib.crc32(view, checksum)
    return Record(length, checksum)
