"""Numbers of strings that stand one behind the other in a buffer, thousands at a time and without making them.

A dictionary takes 0.4 µs for a string that was just decoded, up to 1 µs for one that is rarely met, and 0.1 µs to
decode it. An open-addressed table of the strings' bytes, looked up by array operations, takes a quarter of that.
"""

from __future__ import annotations

from collections.abc import Callable
from secrets import randbits

import numpy as np
from numpy.typing import NDArray

WORDS = 5
"""Of eight bytes, that a token in the table may have: a UUID in letters has five, its header included."""
PADDING = bytes(8 * WORDS)
"""To stand behind the last token: words are read beyond its end."""
AT_ONCE = 1 << 14
"""Tokens looked up in one go: what is made of so many stays in a core's cache."""
FIRST_SLOTS = 1 << 14
MAX_SLOTS = 1 << 20
"""Half of them are filled: 500,000 names in 25 to 50 MB. What comes after those is looked up where it was before."""

_MASKS = np.array([(1 << 8 * bytes_) - 1 for bytes_ in range(9)], dtype=np.uint64)
"""Of a word, the bytes that belong to a token with so many left."""
_FACTORS = np.array([randbits(64) | 1 for _ in range(WORDS)], dtype=np.uint64)
"""Other ones in each process: item ids come from whoever may write events, who is not to choose some that collide."""
_MIX = np.uint64(0xFF51AFD7ED558CCD)
_HALF = np.uint64(32)

Positions = NDArray[np.int64]


class TokenNumbers:
    """A cache of `add`, which numbers one token. Tokens are bytes that are not empty, do not begin with a zero, and of
    which none is the beginning of another: strings behind their length."""

    def __init__(self, add: Callable[[bytes], int]) -> None:
        """`add(token)` must always return the same number for the same token, of at least -1."""
        self._add = add
        self._empty(FIRST_SLOTS, 2)

    def numbers(self, data: bytes, starts: Positions, lengths: Positions) -> NDArray[np.int32]:
        """The number of each token. `PADDING` stands at the end of `data`. Raises what `add` raises."""
        found = np.empty(len(starts), dtype=np.int32)
        for start in range(0, len(starts), AT_ONCE):
            part = slice(start, start + AT_ONCE)
            self._look_up(data, starts[part], lengths[part], found[part])
        return found

    def _look_up(self, data: bytes, starts: Positions, lengths: Positions, found: NDArray[np.int32]) -> None:
        long = lengths > 8 * WORDS
        if not long.any():
            self._short(data, starts, lengths, found, np.arange(len(starts)))
            return
        for i in np.flatnonzero(long).tolist():
            found[i] = self._add(data[starts[i] : starts[i] + lengths[i]])
        short = np.flatnonzero(~long)
        self._short(data, starts[short], lengths[short], found, short)

    def _short(
        self, data: bytes, starts: Positions, lengths: Positions, found: NDArray[np.int32], where: Positions
    ) -> None:
        """Put the number of each token into `found[where]`."""
        if not len(starts):
            return
        words = _words(data, starts, lengths)
        self._make_room(len(words))
        slots = self._slots(words)
        rows = self._table.take(slots, axis=0)
        found[where] = _numbers_of(rows)
        rest = np.flatnonzero(~_same(rows, words))
        while len(rest):  # few: nearly all were found at once
            for i in self._first_of_each_free(slots, rest)[: len(self._table) // 2 - self._used].tolist():
                row = self._table[slots[i]]
                row[: len(words)] = [word[i] for word in words]
                row[-1] = self._add(data[starts[i] : starts[i] + lengths[i]]) + 1
                self._used += 1
            rows = self._table.take(slots[rest], axis=0)
            same, free = _same(rows, [word[rest] for word in words]), rows[:, 0] == 0
            found[where[rest[same]]] = _numbers_of(rows[same])
            for i in rest[free].tolist():  # there was no room for them
                found[where[i]] = self._add(data[starts[i] : starts[i] + lengths[i]])
            rest = rest[~same & ~free]
            slots[rest] = (slots[rest] + 1) & (len(self._table) - 1)

    def _first_of_each_free(self, slots: Positions, which: Positions) -> Positions:
        """Of those that have come to a free slot, one for each slot."""
        free = which[self._table[slots[which], 0] == 0]
        chosen: Positions = free[np.unique(slots[free], return_index=True)[1]]
        return chosen

    def _empty(self, slots: int, width: int) -> None:
        self._table = np.zeros((slots, width), dtype=np.uint64)
        """The words of a token, as many as any has, then its number + 1. A free row begins with 0."""
        self._used = 0
        self._shift = np.uint64(64 - (slots.bit_length() - 1))

    def _make_room(self, words: int) -> None:
        """For tokens of so many words, and more of them unless there are too many. At most half of the slots are used,
        so that a free one is never far."""
        slots, width = self._table.shape
        full = 2 * self._used >= slots < MAX_SLOTS
        if not full and words < width:
            return
        rows = self._table[self._table[:, 0] != 0]
        self._empty(4 * slots if full else slots, max(width, words + 1))
        self._used = len(rows)
        at = self._slots(list(rows[:, :-1].T))
        rest: Positions = np.arange(len(rows))
        while len(rest):
            chosen = self._first_of_each_free(at, rest)
            self._table[at[chosen], : width - 1] = rows[chosen, :-1]
            self._table[at[chosen], -1] = rows[chosen, -1]
            rest = np.setdiff1d(rest, chosen, assume_unique=True)
            at[rest] = (at[rest] + 1) & (len(self._table) - 1)

    def _slots(self, words: list[NDArray[np.uint64]]) -> Positions:
        mixed = words[0] * _FACTORS[0]
        for word, factor in zip(words[1:], _FACTORS[1:], strict=False):
            mixed ^= word * factor  # of a word beyond the token: nothing
        mixed ^= mixed >> _HALF
        mixed *= _MIX
        mixed >>= self._shift
        slots: Positions = mixed.view(np.int64)
        return slots


def _numbers_of(rows: NDArray[np.uint64]) -> NDArray[np.int32]:
    numbers: NDArray[np.int32] = rows[:, -1].astype(np.int32) - np.int32(1)
    return numbers


def _words(data: bytes, starts: Positions, lengths: Positions) -> list[NDArray[np.uint64]]:
    """Each word of the tokens, as many as the longest has; zero beyond a token's end."""
    everywhere: NDArray[np.uint64] = np.ndarray((len(data) - 7,), "<u8", data, strides=(1,))
    count = -(-int(lengths.max()) // 8)
    # Indexed: `take` makes a copy of all first, eight bytes for each byte, since they are not aligned.
    words = [everywhere[starts] & _MASKS.take(lengths, mode="clip")]
    for i in range(1, count):
        words.append(everywhere[starts + 8 * i] & _MASKS.take(lengths - 8 * i, mode="clip"))
    return words


def _same(rows: NDArray[np.uint64], words: list[NDArray[np.uint64]]) -> NDArray[np.bool_]:
    """Where a row is of the token: the first word has its length, so that words beyond these are equal, too."""
    same: NDArray[np.bool_] = rows[:, 0] == words[0]
    for i, word in enumerate(words[1:], start=1):
        same &= rows[:, i] == word
    return same
