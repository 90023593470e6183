"""Rows by item id, of millions: a hash table in one array.

A dictionary of 20 million takes four cache misses for an id, one after the other, and 127 bytes of memory, the string
and the number included. Here all ids that are asked for are looked for together, so that their misses overlap, and an
item takes 14 bytes besides its id's own. Where there is a C compiler it is done in C, in half of NumPy's time.
"""

from __future__ import annotations

import ctypes
import functools
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from ctypes import PYFUNCTYPE, c_ssize_t, c_void_p, py_object, pythonapi
from pathlib import Path
from secrets import randbits
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from xgr_stream.catalog.strings import WORD, Int64Array, PackedStrings, Strings, UInt64Array, Words

Int32Array = npt.NDArray[np.int32]
BUCKET = 8
"""Slots: a cache line of them."""
FULL = 0.75
"""Share of the slots in use, at most."""
PIECE = 1 << 18
"""Ids that are put in together."""
AT_ONCE = 1 << 13
"""Ids that are looked for together: so few that no single call holds up other threads."""
AT_ONCE_IN_C = 1 << 11
"""The same in C, where all that is done with them is one call: 0.1 to 0.5 ms."""
FEW = 16
"""Ids that are looked for sooner one by one, where there is no C."""
HALF = WORD // 2
from_bytes = int.from_bytes
_BITS = (1 << 64) - 1
_LOW = (1 << 32) - 1


SOURCE = Path(__file__).with_suffix(".c")


@functools.cache
def in_c() -> Callable[..., None] | None:
    """`find_rows` of row_table.c, without what it is given of Python's; None where there is no C compiler, or no GIL
    to keep a list as it is. The first call compiles it, unless that was done on this machine before.

    An id that is not ASCII keeps its UTF-8 beside it from then on, as Python's strings do."""
    if not getattr(sys, "_is_gil_enabled", lambda: True)():
        return None
    from xgr_kernels.compiled import library  # with torch, which a catalog by itself does without

    functions = library((SOURCE,))
    if functions is None:
        return None
    # A `PYFUNCTYPE` is called with the GIL held, and raises what Python's functions raised in it.
    arguments = (c_void_p, c_void_p, c_void_p, py_object, c_ssize_t, c_ssize_t, c_void_p)
    find = PYFUNCTYPE(None, *arguments)(("find_rows", functions))
    python = (ctypes.cast(pythonapi.PyList_GetItem, c_void_p), ctypes.cast(pythonapi.PyUnicode_AsUTF8AndSize, c_void_p))
    return functools.partial(find, *python)


class RowTable:
    """Never changes once built; safe on any thread."""

    def __init__(self, ids: PackedStrings) -> None:
        """`ids`: each once; an id's row is its place."""
        self._ids = ids
        pieces = range(0, len(ids), PIECE)
        lengths = (ids.part(first, first + PIECE).lengths for first in pieces)  # one piece's at a time
        ends = [(int(own.min()), int(own.max())) for own in lengths]
        shortest = min((least for least, _ in ends), default=0)
        longest = max((most for _, most in ends), default=0)
        self._seed = np.array([[randbits(64) for _ in range(2)] for _ in range(1 + -(-longest // HALF))], np.uint64)
        """For the length and each half of a word, one for either half of a hash. [1 + halves, 2]

        So that nobody can choose ids that collide, and ids that differ in a few places alone don't: two ids have equal
        hashes by a chance of one in 2^64, whatever they are (multilinear hashing: Lemire and Kaser, Strongly universal
        string hashing is fast, 2014)."""
        self._pairs: list[int] = [own + (other << 128) for own, other in self._seed.tolist()]
        buckets = 1
        while buckets * BUCKET * FULL < len(ids):
            buckets *= 2
        self._slots = np.zeros((buckets, BUCKET), np.uint64)
        """An id's slot is in the bucket that its hash names or, if that is full, in the next one. It holds the hash's
        upper half and, as the lower, the row + 1; 0: nothing."""
        for first in pieces:
            part = ids.part(first, first + PIECE)
            self._put(first, self._hashes(part.lengths, part.words()))
        self._slot = memoryview(cast(Any, self._slots.reshape(-1)))
        arrays = [array.ctypes.data for array in (self._slots, self._seed, ids.bytes, ids.starts)]
        wide = int(ids.starts.itemsize == 8)
        length = longest if longest == shortest else 0
        self._in_c = np.array([*arrays, buckets, len(self._seed), wide, length], np.int64)
        """`Table` of row_table.c."""

    def row(self, item_id: str) -> int:
        """-1: there is none."""
        encoded = item_id.encode("utf-8", "surrogatepass")
        hashed = self._hash(encoded)
        upper = hashed & ~_LOW
        at = (hashed & len(self._slots) - 1) * BUCKET
        row = ((self._slot[at + (hashed >> 61)]) ^ upper) - 1  # there, in three of four cases
        if 0 <= row < _LOW and self._ids.encoded(row) == encoded:
            return row
        while True:
            bucket = self._slot[at : at + BUCKET].tolist()
            for slot in bucket:
                row = (slot ^ upper) - 1
                if 0 <= row < _LOW and self._ids.encoded(row) == encoded:
                    return row
            if 0 in bucket:
                return -1
            at = (at + BUCKET) % len(self._slot)

    def rows(self, item_ids: Sequence[str]) -> Int32Array:
        """The row of each, -1: there is none. [item_ids]"""
        if not len(self._ids) or not item_ids:
            return np.full(len(item_ids), -1, np.int32)
        find = in_c()
        if find is not None:
            with suppress(UnicodeEncodeError):  # half of a surrogate pair is in one of them
                return self._rows_in_c(find, item_ids if isinstance(item_ids, list) else list(item_ids))
        if len(item_ids) <= FEW:
            return np.fromiter(map(self.row, item_ids), np.int32, len(item_ids))
        parts = [self._rows(item_ids[first : first + AT_ONCE]) for first in range(0, len(item_ids), AT_ONCE)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _rows_in_c(self, find: Callable[..., None], item_ids: list[str]) -> Int32Array:
        rows = np.empty(len(item_ids), np.int32)
        table, into = self._in_c.ctypes.data, rows.ctypes.data
        for first in range(0, len(rows), AT_ONCE_IN_C):
            find(table, item_ids, first, min(first + AT_ONCE_IN_C, len(rows)), into)
        return rows

    def _rows(self, item_ids: Sequence[str]) -> Int32Array:
        wanted = Strings.of(item_ids)
        words = list(wanted.words())
        hashes = self._hashes(wanted.lengths, words)
        upper = hashes & np.uint64(_BITS - _LOW)
        at = (hashes & np.uint64(len(self._slots) - 1)).astype(np.int64) * BUCKET
        # In the slot that is tried first there are three of four, so one slot each is looked at before whole buckets.
        found = self._slots.reshape(-1).take(at + (hashes >> np.uint64(61)).astype(np.int64)) ^ upper
        # Row + 1 where the upper halves are the same and the slot is not empty; anything else is larger, or 0.
        found -= np.uint64(1)
        elsewhere = np.flatnonzero(found >= np.uint64(_LOW))
        rows = found.astype(np.int32)
        if len(elsewhere):
            rows[elsewhere] = self._in_buckets(at[elsewhere] // BUCKET, upper[elsewhere])
        same = self._ids.equal(np.maximum(rows, 0), wanted.lengths, words)
        for other in np.flatnonzero(~same & (rows >= 0)).tolist():  # of equal upper halves, once in many millions
            rows[other] = self.row(item_ids[other])
        return rows

    def _in_buckets(self, bucket: Int64Array, upper: UInt64Array) -> Int32Array:
        """The row whose hash has this upper half, in this bucket or those behind it; -1: there is none."""
        rows = np.full(len(bucket), -1, np.int32)
        open_: npt.NDArray[np.intp] = np.arange(len(rows))
        while len(open_):
            slots = self._slots.take(bucket, axis=0)
            found = (slots ^ upper[:, None]).reshape(-1)
            hits = np.flatnonzero(found - np.uint64(1) < np.uint64(_LOW))
            hit = hits // BUCKET
            rows[open_[hit]] = found[hits].astype(np.int64) - 1
            missed = np.ones(len(open_), np.bool_)
            missed[hit] = False
            go_on = np.flatnonzero(missed)
            go_on = go_on[slots[go_on].all(axis=1)]
            open_, upper, bucket = open_[go_on], upper[go_on], (bucket[go_on] + 1) % len(self._slots)
        return rows

    def _hash(self, encoded: bytes) -> int:
        """What `_hashes` makes of one."""
        pairs = self._pairs
        sums: int = len(encoded) * pairs[0]
        for place, pair in zip(range(0, len(encoded), HALF), pairs[1:], strict=False):
            sums += from_bytes(encoded[place : place + HALF], "little") * pair
        return (sums >> 32 & _LOW) << 32 | sums >> 160 & _LOW

    def _hashes(self, lengths: Int64Array, words: Iterable[Words]) -> UInt64Array:
        """Two sums of each one's half words and its length, times a random number each; their upper halves. Of an id
        that is longer than all of the table's the rest does not count: it is not there, whatever its hash."""
        sums = lengths.astype(np.uint64)[:, None] * self._seed[0]
        for place, (which, own, _) in zip(range(1, len(self._seed), 2), words, strict=False):
            for half, seed in zip((own & np.uint64(_LOW), own >> np.uint64(32)), self._seed[place:], strict=False):
                sums[which] += half[:, None] * seed
        own, other = sums.T
        hashes: UInt64Array = own & np.uint64(_BITS - _LOW) | other >> np.uint64(32)
        return hashes

    def _put(self, first: int, hashes: UInt64Array) -> None:
        """Those of the rows from `first` on."""
        slots, buckets = self._slots.reshape(-1), len(self._slots)
        entries = hashes & np.uint64(_BITS - _LOW)
        entries |= np.arange(first + 1, first + 1 + len(hashes), dtype=np.uint64)
        bucket = (hashes & np.uint64(buckets - 1)).astype(np.int64)
        begin = (hashes >> np.uint64(61)).astype(np.int64)  # which of a bucket's slots is tried first: most get it
        tried = 0
        while len(entries):
            at = bucket * BUCKET
            at += (begin + tried) % BUCKET
            free = np.flatnonzero(slots.take(at) == 0)
            slots[at[free]] = entries[free]  # of several for one slot, one stays
            out = np.flatnonzero(slots.take(at) != entries)
            entries, bucket, begin = entries[out], bucket[out], begin[out]
            tried += 1
            if tried % BUCKET == 0:
                bucket = (bucket + 1) % buckets
