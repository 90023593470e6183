"""Strings packed into arrays, so that what is done with a thousand of them is done by NumPy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from operator import eq
from typing import Any, NamedTuple, cast, overload

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

    def words(self) -> Iterator[Words]:
        """The first eight bytes of each, then the next eight of those that have more, and so on."""
        first, left = self.first, self.lengths
        which: slice | Int64Array = slice(None)
        from_byte = _from_byte(self.data)
        while len(first):
            mask = _OF_WORD.take(left, mode="clip")
            words = from_byte[first]  # not `take`, which would copy all of them first
            words &= mask
            yield Words(which, words, mask)
            first, left = first + WORD, left - WORD
            if int(left.min()) > 0:
                continue
            some = np.flatnonzero(left > 0)
            first, left = first[some], left[some]
            which = some if isinstance(which, slice) else which[some]


class Words(NamedTuple):
    """The bytes of one word's place."""

    which: slice | Int64Array
    """Which of the strings have any there."""
    words: UInt64Array
    """Of each of those, as a number; what stands behind a string's end is 0."""
    mask: UInt64Array
    """The bits that belong to the string."""


def _from_byte(data: npt.NDArray[np.uint8]) -> UInt64Array:
    """The word from each byte on."""
    size = (len(data) - WORD + 1,)
    words: UInt64Array = np.lib.stride_tricks.as_strided(data[:WORD].view("<u8"), size, (1,))
    return words


class PackedStrings(Sequence[str]):
    """A sequence of strings that never changes."""

    def __init__(self, strings: pa.Array) -> None:
        """Without nulls."""
        column: Any = strings.cast(pa.large_string())
        _, offsets, data = column.buffers()
        starts = np.frombuffer(offsets, np.int64)[column.offset : column.offset + len(column) + 1]
        begin, end = int(starts[0]), int(starts[-1])
        # NumPy's own memory, which is in large pages: half the time of a look at ids here and there among millions.
        self._aligned = np.zeros((end - begin) // WORD + 2, np.uint64)
        self._data = self._aligned.view(np.uint8)
        if data is not None:
            self._data[: end - begin] = np.frombuffer(data, np.uint8)[begin:end]
        self._bytes = memoryview(cast(Any, self._data))
        self._num_bytes = end - begin
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
        return self._bytes[self._starts.item(place) : self._starts.item(place + 1)].tobytes()

    def take(self, places: npt.NDArray[np.integer[Any]]) -> list[str]:
        """The strings of these places: a third of the time of one by one."""
        data, starts = self._bytes, self._starts
        ends = starts.take(places + 1).tolist()
        return [str(data[begin:end], "utf-8") for begin, end in zip(starts.take(places).tolist(), ends, strict=True)]

    def equal(self, places: npt.NDArray[np.integer[Any]], lengths: Int64Array, words: Sequence[Words]) -> BoolArray:
        """Whether the string of each of these places has this length and these words (`Strings.words`)."""
        first = self._starts.take(places).astype(np.int64)
        same: BoolArray = self._starts.take(places + 1).astype(np.int64) - first == lengths
        for word, (which, own, mask) in enumerate(words):
            others = self._words_from(first[which] + word * WORD)
            others ^= own
            others &= mask
            same[which] &= others == 0
        return same

    def _words_from(self, at: Int64Array) -> UInt64Array:
        """The word from each of these bytes on, anything for one beyond the end. Made of two that are aligned, which
        NumPy takes without waiting for one before it looks for the next."""
        word = at >> 3
        bits = ((at & 7) << 3).astype(np.uint64)
        words: UInt64Array = self._aligned.take(word, mode="clip")
        words >>= bits
        word += 1
        upper = self._aligned.take(word, mode="clip")
        upper <<= np.uint64(1)  # in two steps, since 64 bits at once would be none
        upper <<= bits ^ np.uint64(63)
        words |= upper
        return words

    def part(self, begin: int, end: int) -> Strings:
        starts = self._starts[begin : end + 1].astype(np.int64)
        return Strings(self._data, starts[:-1], np.diff(starts))

    @property
    def bytes(self) -> npt.NDArray[np.uint8]:
        """All of them, one behind the other."""
        return self._data[: self._num_bytes]

    @property
    def starts(self) -> npt.NDArray[Any]:
        """Where each begins in `bytes`, and the last one ends: 32 bits each, or 64."""
        return self._starts

    def to_arrow(self) -> pa.Array:
        """Without a copy of the strings."""
        buffers = [None, pa.py_buffer(self._starts.astype(np.int64)), pa.py_buffer(self.bytes)]
        return pa.Array.from_buffers(pa.large_string(), len(self), buffers)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        return len(self) == len(other) and all(map(eq, self, other))

    __hash__ = None  # type: ignore[assignment]
