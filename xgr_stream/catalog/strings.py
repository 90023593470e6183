"""Strings packed into arrays, so that what is done with a thousand of them is done by NumPy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from operator import eq
from typing import Any, NamedTuple, overload

import numpy as np
import numpy.typing as npt
import pyarrow as pa

UInt64Array = npt.NDArray[np.uint64]
Int64Array = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
WORD = 8
"""Bytes that are looked at together."""
_OF_WORD = np.array([(1 << 8 * size) - 1 for size in range(WORD + 1)], np.uint64)
"""What of a word belongs to a string that has so many bytes left."""


class Strings(NamedTuple):
    """UTF-8 strings in one buffer."""

    data: npt.NDArray[np.uint8]
    """The strings, perhaps with gaps, and a word more."""
    first: Int64Array
    """Where each begins."""
    lengths: Int64Array
    """Of each, in bytes."""

    @classmethod
    def of(cls, strings: Sequence[str]) -> Strings:
        text = "\0".join(strings).encode("utf-8", "surrogatepass")
        data = np.frombuffer(text + bytes(WORD), np.uint8)
        ends = np.flatnonzero(data[: len(text) + 1] == 0)
        if len(ends) == len(strings):
            first = np.zeros(len(ends), np.int64)
            np.add(ends[:-1], 1, out=first[1:])
            return cls(data, first, ends - first)
        parts = [string.encode("utf-8", "surrogatepass") for string in strings]  # there are none, or one holds a zero
        data = np.frombuffer(b"".join(parts) + bytes(WORD), np.uint8)
        lengths = np.fromiter(map(len, parts), np.int64, len(parts))
        return cls(data, np.cumsum(lengths) - lengths, lengths)

    def words(self) -> Iterator[tuple[slice | Int64Array, UInt64Array]]:
        """The first eight bytes of each, then the next eight of those that have more, and so on: (which strings, their
        bytes as numbers, those behind a string's end 0)."""
        at, left = self.first, self.lengths
        which: slice | Int64Array = slice(None)
        size = (len(self.data) - WORD + 1,)
        from_byte: UInt64Array = np.lib.stride_tricks.as_strided(self.data[:WORD].view("<u8"), size, (1,))
        while len(at):
            words = from_byte[at]  # not `take`, which would copy all of them first
            words &= _OF_WORD.take(left, mode="clip")
            yield which, words
            at, left = at + WORD, left - WORD
            some = np.flatnonzero(left > 0)
            if len(some) < len(at):
                at, left = at[some], left[some]
                which = some if isinstance(which, slice) else which[some]

    def at(self, places: Int64Array) -> Strings:
        return Strings(self.data, self.first[places], self.lengths[places])

    def equal(self, other: Strings) -> BoolArray:
        """Whether each equals the other's of the same place."""
        same: BoolArray = self.lengths == other.lengths
        if not same.all():
            places = np.flatnonzero(same)
            same[places] = self.at(places).equal(other.at(places))
            return same
        for (which, own), (_, others) in zip(self.words(), other.words(), strict=True):
            same[which] &= own == others
        return same


class PackedStrings(Sequence[str]):
    """A sequence of strings that never changes."""

    def __init__(self, strings: pa.Array) -> None:
        """Without nulls."""
        column: Any = strings.cast(pa.large_string())
        _, offsets, data = column.buffers()
        starts = np.frombuffer(offsets, np.int64)[column.offset : column.offset + len(column) + 1]
        begin, end = int(starts[0]), int(starts[-1])
        self._bytes = b"".join((b"" if data is None else memoryview(data)[begin:end], bytes(WORD)))
        self._data = np.frombuffer(self._bytes, np.uint8)
        self._starts = (starts - begin).astype(np.uint32 if end - begin < 1 << 32 else np.int64)

    def __len__(self) -> int:
        return len(self._starts) - 1

    @overload
    def __getitem__(self, place: int) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[str]: ...
    def __getitem__(self, place: int | slice) -> str | Sequence[str]:
        if isinstance(place, slice):
            return tuple(self[p] for p in range(*place.indices(len(self))))
        if place < 0:
            place += len(self)
        return self.encoded(place).decode()

    def encoded(self, place: int) -> bytes:
        return self._bytes[self._starts.item(place) : self._starts.item(place + 1)]

    def take(self, places: npt.NDArray[np.integer[Any]]) -> list[str]:
        """The strings of these places: a third of the time of one by one."""
        data, starts = self._bytes, self._starts
        ends = starts.take(places + 1).tolist()
        return [data[begin:end].decode() for begin, end in zip(starts.take(places).tolist(), ends, strict=True)]

    def at(self, places: npt.NDArray[np.integer[Any]]) -> Strings:
        first = self._starts.take(places).astype(np.int64)
        return Strings(self._data, first, self._starts.take(places + 1).astype(np.int64) - first)

    def part(self, begin: int, end: int) -> Strings:
        starts = self._starts[begin : end + 1].astype(np.int64)
        return Strings(self._data, starts[:-1], np.diff(starts))

    @property
    def bytes(self) -> npt.NDArray[np.uint8]:
        """All of them, one behind the other."""
        return self._data[:-WORD]

    def to_arrow(self) -> pa.Array:
        """Without a copy of the strings."""
        buffers = [None, pa.py_buffer(self._starts.astype(np.int64)), pa.py_buffer(self.bytes)]
        return pa.Array.from_buffers(pa.large_string(), len(self), buffers)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        return len(self) == len(other) and all(map(eq, self, other))

    __hash__ = None  # type: ignore[assignment]
