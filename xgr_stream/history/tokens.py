"""Numbers of strings that stand one behind the other in a buffer, thousands at a time and without making them.

A dictionary takes 0.4 µs for a string that was just decoded, up to 1 µs for one that is rarely met, and 0.1 µs to
decode it. An open-addressed table of the strings' bytes, looked up by array operations, takes a quarter of that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from secrets import randbits
from typing import NamedTuple

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
"""Half of them are filled: 500,000 names in 17 to 50 MB. What comes after those is looked up where it was before."""

_WIDTHS = 2, 4, WORDS + 1
"""Of a row of the table, in words: `take` copies rows of 16 and of 32 bytes inline, any others by a call each."""
_MASKS = np.array([(1 << 8 * bytes_) - 1 for bytes_ in range(9)], dtype=np.uint64)
"""Of a word, the bytes that belong to a token with so many left."""
_FACTORS = np.array([[randbits(64) for _ in range(2)] for _ in range(WORDS)], dtype=np.uint64)
"""Of each word's lower and upper half. Other ones in each process: item ids come from whoever may write events, who is
not to choose some that collide."""
_HALF = np.uint64(32)
_LOWER = np.uint64((1 << 32) - 1)

Positions = NDArray[np.int64]
Numbers = NDArray[np.int32]
Words = NDArray[np.uint64]
Flags = NDArray[np.bool_]


class TokenNumbers:
    """A cache of `add`, which numbers tokens. They are bytes that are not empty, do not begin with a zero, and of which
    none is the beginning of another: strings behind their length."""

    def __init__(self, add: Callable[[list[bytes]], Sequence[int]]) -> None:
        """`add(tokens)` must always return the same number for the same token, of at least -1."""
        self._add = add
        self._empty(FIRST_SLOTS, 1)

    def numbers(self, data: bytes, starts: Positions, lengths: Positions) -> Numbers:
        """The number of each token. `PADDING` stands at the end of `data`. Raises what `add` raises."""
        found = np.empty(len(starts), dtype=np.int32)
        for start in range(0, len(starts), AT_ONCE):
            part = slice(start, start + AT_ONCE)
            self._look_up(_Tokens(data, starts[part], lengths[part]), found[part])
        return found

    def _look_up(self, tokens: _Tokens, found: Numbers) -> None:
        long = tokens.lengths > 8 * WORDS
        if not long.any():
            self._short(tokens, found)
            return
        found[long] = self._add(tokens.of(long).listed())
        if not long.all():
            short = np.empty(np.count_nonzero(~long), dtype=np.int32)
            self._short(tokens.of(~long), short)
            found[~long] = short

    def _short(self, tokens: _Tokens, found: Numbers) -> None:
        words = tokens.words()
        self._make_room(len(words))
        slots = self._slots(words)
        rows = self._table.take(slots, axis=0)
        found[:] = _numbers_of(rows)
        rest = np.flatnonzero(~_same(rows, words))
        if len(rest):  # few: nearly all were found at once
            found[rest] = self._further(tokens.of(rest), [word[rest] for word in words], slots[rest])

    def _further(self, tokens: _Tokens, words: list[Words], slots: Positions) -> Numbers:
        """The numbers of tokens that are not in the first slot they may be in, or are met for the first time."""
        numbers = np.empty(len(slots), dtype=np.int32)
        places: Positions = np.arange(len(slots))
        step = 0
        while len(places):
            free = np.flatnonzero(self._table[slots, 0] == 0)
            if len(free):
                self._fill(tokens, words, slots, free)
            rows = self._table.take(slots, axis=0)
            same = _same(rows, words)
            numbers[places[same]] = _numbers_of(rows[same])
            on = ~same
            if len(free) and (without := rows[:, 0] == 0).any():  # there was no room for them
                numbers[places[without]] = self._add(tokens.of(without).listed())
                on &= ~without
            places, tokens, words = places[on], tokens.of(on), [word[on] for word in words]
            step += 1  # longer each time, or tokens would gather behind those that have met
            slots = (slots[on] + step) & (len(self._table) - 1)
        return numbers

    def _fill(self, tokens: _Tokens, words: list[Words], slots: Positions, which: Positions) -> None:
        """Put those of the tokens, all at free slots, into the table, one into each slot, while there is room."""
        chosen = which[self._one_of_each(slots[which])][: len(self._table) // 2 - self._used]
        if len(chosen):
            numbers = self._add(tokens.of(chosen).listed())
            self._put(slots[chosen], [word[chosen] for word in words], numbers)

    def _one_of_each(self, slots: Positions) -> Flags:
        """The first of those that have come to the same free slot."""
        order = np.arange(len(slots), dtype=np.int32)
        claims = _numbers_of(self._table)
        claims[slots[::-1]] = order[::-1]  # the last that is written stays
        chosen: Flags = claims[slots] == order
        return chosen

    def _put(self, slots: Positions, words: list[Words], numbers: Sequence[int] | Numbers) -> None:
        for i, word in enumerate(words):
            self._table[slots, i] = word
        _numbers_of(self._table)[slots] = numbers
        self._used += len(slots)

    def _empty(self, slots: int, words: int) -> None:
        width = next(width for width in _WIDTHS if width > words)
        self._table = np.zeros((slots, width), dtype=np.uint64)
        """The words of a token, as many as any has, and last its number. A free row begins with 0."""
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
        self._empty(4 * slots if full else slots, max(width - 1, words))
        at = self._slots(list(rows[:, :-1].T))
        step = 0
        while len(rows):
            chosen = np.flatnonzero(self._table[at, 0] == 0)
            chosen = chosen[self._one_of_each(at[chosen])]
            self._put(at[chosen], list(rows[chosen, :-1].T), _numbers_of(rows)[chosen])
            step += 1
            rows, at = np.delete(rows, chosen, axis=0), (np.delete(at, chosen) + step) & (len(self._table) - 1)

    def _slots(self, words: list[Words]) -> Positions:
        """The upper bits of a sum of half words times a random number each (multilinear hashing): two tokens have the
        same by chance alone, whatever they are."""
        sums = np.zeros(len(words[0]), np.uint64)
        for word, (lower, upper) in zip(words, _FACTORS, strict=False):  # of a word beyond the token: nothing
            sums += (word & _LOWER) * lower
            sums += (word >> _HALF) * upper
        sums >>= self._shift
        slots: Positions = sums.view(np.int64)
        return slots


class _Tokens(NamedTuple):
    """Where in some data they stand."""

    data: bytes
    starts: Positions
    lengths: Positions

    def of(self, which: Positions | Flags) -> _Tokens:
        return _Tokens(self.data, self.starts[which], self.lengths[which])

    def listed(self) -> list[bytes]:
        return [
            self.data[start : start + length]
            for start, length in zip(self.starts.tolist(), self.lengths.tolist(), strict=True)
        ]

    def words(self) -> list[Words]:
        """Each word of the tokens, as many as the longest has; zero beyond a token's end."""
        everywhere: Words = np.ndarray((len(self.data) - 7,), "<u8", self.data, strides=(1,))
        count = -(-int(self.lengths.max()) // 8)
        # Indexed: `take` makes a copy of all first, eight bytes for each byte, since they are not aligned.
        words = [everywhere[self.starts] & _MASKS.take(self.lengths, mode="clip")]
        for i in range(1, count):
            words.append(everywhere[self.starts + 8 * i] & _MASKS.take(self.lengths - 8 * i, mode="clip"))
        return words


def _numbers_of(rows: Words) -> Numbers:
    """A view."""
    numbers: Numbers = rows.view(np.int32)[:, -2]
    return numbers


def _same(rows: Words, words: list[Words]) -> Flags:
    """Where a row is of the token: the first word has its length, so that words beyond these are equal, too."""
    same: Flags = rows[:, 0] == words[0]
    for i, word in enumerate(words[1:], start=1):
        same &= rows[:, i] == word
    return same
