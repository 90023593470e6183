"""One partition's histories in a file, so that a restart reads only what its changelog got after that.

    magic | chunk | chunk | ... | footer | length of the footer, its CRC-32 | magic

A chunk is the arrays of some users, little-endian: characters of the id (u16), events kept (u32), number of the first
(i64), last offset (i64), life (i64), each [users]; the ids in UTF-8; items (i32) and, if there are any, actions (i16),
each [events]. The footer is a msgpack map that says where the chunks are, with their CRC-32, and what they are of.

A snapshot is only ever a shortcut. It is written beside its place, flushed, and renamed; whatever about it is not as it
must be makes it `Unusable`, and everything is then read from the changelog.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from mmap import mmap
from pathlib import Path
from struct import Struct
from typing import Any, BinaryIO, NamedTuple

import msgpack
import numpy as np
from numpy.typing import NDArray

from xgr_stream.history.packed import Numbering, PackedUsers
from xgr_stream.history.sources import SourcePosition, Watermark
from xgr_stream.history.store import HistoryStore
from xgr_stream.history.user import HistoryView

FORMAT = 1
MAGIC = b"xgr-snap"
_TRAILER = Struct("<QI8s")
_USER_ARRAYS = (("chars", "<u2"), ("kept", "<u4"), ("first", "<i8"), ("last_offset", "<i8"), ("life", "<i8"))


class Unusable(Exception):
    """A snapshot that must not be used. `reason`: `damaged`, `newer`, `foreign`."""

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason


class Source(NamedTuple):
    """What a snapshot was taken of. The anchor is a record of the changelog that proves it."""

    topic: str
    partition: int
    anchor: bytes
    anchor_offset: int
    position: int
    """Offset of the changelog from which on it must be read besides."""
    keep_events: int
    segment_events: int


class Chunk(NamedTuple):
    at: int
    num_users: int
    num_events: int
    id_bytes: int
    has_actions: bool
    crc: int

    @property
    def num_bytes(self) -> int:
        per_user = sum(np.dtype(kind).itemsize for _, kind in _USER_ARRAYS)
        return self.num_users * per_user + self.id_bytes + self.num_events * (6 if self.has_actions else 4)


class SnapshotWriter:
    """Writes a snapshot beside its place: `add` views, then `finish`, then `publish`; or `abandon`. On any one thread
    at a time."""

    def __init__(self, path: Path) -> None:
        """Raises `OSError`, as all methods but `abandon`."""
        self._path = path
        handle, name = tempfile.mkstemp(prefix=f"{path.name}.", suffix=".new", dir=path.parent)
        self._temporary = Path(name)
        self._file = os.fdopen(handle, "wb")
        self._file.write(MAGIC)
        self._chunks: list[Chunk] = []
        self._used: NDArray[np.bool_] = np.zeros(0, dtype=np.bool_)

    def add(self, views: Sequence[HistoryView]) -> int:
        """Write these users; how many bytes that took."""
        data = [view.data for view in views]
        items = np.frombuffer(b"".join(part for part, _ in data), np.int32).astype("<i4", copy=False)
        actions = np.frombuffer(b"".join(part for _, part in data), np.int16).astype("<i2", copy=False)
        ids = "".join(view.user_id for view in views).encode()
        values = {
            "chars": [len(view.user_id) for view in views],
            "kept": [len(view) for view in views],
            "first": [view.first_number for view in views],
            "last_offset": [view.last_offset for view in views],
            "life": [view.life for view in views],
        }
        has_actions = bool((actions >= 0).any())
        parts = [np.asarray(values[name], dtype=kind).tobytes() for name, kind in _USER_ARRAYS]
        parts += [ids, items.tobytes(), actions.tobytes() if has_actions else b""]
        chunk = b"".join(parts)
        self._note_used(items)
        self._chunks.append(Chunk(self._file.tell(), len(views), len(items), len(ids), has_actions, zlib.crc32(chunk)))
        self._file.write(chunk)
        return len(chunk)

    def finish(
        self,
        source: Source,
        history: HistoryStore,
        action_names: Sequence[str],
        forgotten: Mapping[bytes, int],
        watermarks: Sequence[Watermark],
    ) -> None:
        """Write what the chunks are of, and flush all of it to the disk."""
        numbers = np.flatnonzero(self._used).astype("<i4")
        footer: bytes = msgpack.packb(
            {
                "format": FORMAT,
                "source": source._asdict(),
                "chunks": [tuple(chunk) for chunk in self._chunks],
                "item_numbers": numbers.tobytes(),
                "item_names": [history.item_names[number] for number in numbers.tolist()],
                "action_names": list(action_names),
                "forgotten": list(forgotten.items()),
                "watermarks": watermarks,
            }
        )
        self._file.write(footer)
        self._file.write(_TRAILER.pack(len(footer), zlib.crc32(footer), MAGIC))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def publish(self) -> None:
        """Put it in its place, instead of an older one."""
        self._temporary.replace(self._path)
        directory = os.open(self._path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def abandon(self) -> None:
        """Leave nothing of it, if it was not published."""
        with contextlib.suppress(OSError):
            try:
                self._file.close()  # writes what is left, which fails again where the disk is full
            finally:
                self._temporary.unlink(missing_ok=True)

    def _note_used(self, items: NDArray[np.int32]) -> None:
        needed = int(items.max(initial=-1)) + 1
        if needed > len(self._used):
            self._used = np.concatenate((self._used, np.zeros(max(needed, 1024) - len(self._used), dtype=np.bool_)))
        self._used[items] = True


class Snapshot:
    """A snapshot that was opened: what it is of, and the names that its numbers stand for. Close it."""

    def __init__(self, path: Path) -> None:
        """Raises `Unusable`, and `FileNotFoundError` if there is none."""
        try:
            self._file = path.open("rb")
        except FileNotFoundError:
            raise
        except OSError as error:
            raise Unusable("damaged", f"it can't be opened: {error}") from error
        try:
            footer = _footer(self._file)
            self.source = Source(**footer["source"])
            self.item_names: list[str] = footer["item_names"]
            self.action_names: list[str] = footer["action_names"]
            self.forgotten: dict[bytes, int] = dict(footer["forgotten"])
            self.watermarks = [
                Watermark(SourcePosition(*source), holder)
                for source, holder in footer.get("watermarks", ())  # files of before have none
            ]
            self.item_numbers = np.frombuffer(footer["item_numbers"], "<i4")
            """What `item_names` are in the chunks."""
            self._chunks = [Chunk(*chunk) for chunk in footer["chunks"]]
            if len(self.item_numbers) != len(self.item_names):
                raise ValueError("each item must have a number and a name")
        except Unusable:
            self.close()
            raise
        except (OSError, KeyError, TypeError, ValueError) as error:
            self.close()
            raise Unusable("damaged", f"its footer can't be read: {type(error).__name__} {error}") from error

    def close(self) -> None:
        self._file.close()

    def users(self, numbering: Numbering) -> Iterator[PackedUsers]:
        """All its users, chunk by chunk. Raises `Unusable`: then none of them may be used. Touches nothing shared."""
        for chunk in self._chunks:
            try:
                yield self._read(chunk, numbering)
            except (OSError, ValueError, TypeError, IndexError, OverflowError) as error:
                raise Unusable("damaged", f"a chunk can't be read: {type(error).__name__} {error}") from error

    def _read(self, chunk: Chunk, numbering: Numbering) -> PackedUsers:
        self._file.seek(chunk.at)
        # Memory of its own, which goes when the chunk is unpacked: freed blocks of a thread's heap would stay (0.7 GB).
        data = mmap(-1, max(chunk.num_bytes, 1))
        if self._file.readinto(data) < chunk.num_bytes or zlib.crc32(memoryview(data)[: chunk.num_bytes]) != chunk.crc:
            raise Unusable("damaged", f"the checksum of the chunk at {chunk.at} is wrong")
        at = 0
        columns = {}
        for name, kind in _USER_ARRAYS:
            columns[name] = np.frombuffer(data, kind, chunk.num_users, at)
            at += columns[name].nbytes
        text = data[at : at + chunk.id_bytes].decode()
        at += chunk.id_bytes
        ends = [0, *np.cumsum(columns["chars"], dtype=np.int64).tolist()]
        items = np.frombuffer(data, "<i4", chunk.num_events, at)
        actions = np.frombuffer(data, "<i2", chunk.num_events, at + items.nbytes) if chunk.has_actions else None
        return PackedUsers(
            self.source.partition,
            [text[start:end] for start, end in pairwise(ends)],
            columns["kept"],
            columns["first"],
            columns["last_offset"],
            columns["life"],
            items,
            actions,
            numbering,
        )


def _footer(file: BinaryIO) -> dict[str, Any]:
    """The footer, whole and of a format that is known. Raises `Unusable`."""
    size = file.seek(0, os.SEEK_END)
    least = len(MAGIC) + _TRAILER.size
    file.seek(max(0, size - _TRAILER.size))
    trailer = file.read(_TRAILER.size)
    if size < least or trailer[-len(MAGIC) :] != MAGIC:
        raise Unusable("damaged", "it has no end: it was cut off, or is no snapshot")
    length, crc, _ = _TRAILER.unpack(trailer)
    if length > size - least:
        raise Unusable("damaged", "its footer is longer than the file")
    file.seek(size - _TRAILER.size - length)
    data = file.read(length)
    if zlib.crc32(data) != crc:
        raise Unusable("damaged", "the checksum of its footer is wrong")
    footer: dict[str, Any] = {}
    with contextlib.suppress(ValueError, TypeError, msgpack.UnpackException):
        footer = msgpack.unpackb(data, raw=False, strict_map_key=False, max_ext_len=0)
    if type(footer) is not dict or "format" not in footer:
        raise Unusable("damaged", "its footer is no map")
    if footer["format"] != FORMAT:
        raise Unusable("newer", f"its format must be {FORMAT}, not {footer['format']!r}")
    return footer
