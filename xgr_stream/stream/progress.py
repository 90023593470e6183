"""How far a partition's records are done, as a transaction commits it: an offset, and what is done ahead of it.

A request that takes long must not hold back the answers to those behind it, and the new owner of the partition must not
answer these again. So a commit's metadata says which they are: a bit for each offset from the committed one on.
"""

from __future__ import annotations

import base64
import binascii
from typing import NamedTuple

MAX_AHEAD = 24_000
"""Offsets that a commit can speak of: a broker keeps 4096 bytes of metadata (`offset.metadata.max.bytes`)."""
_PREFIX = "xgr1:"


class Progress(NamedTuple):
    """`offset` is the next record to read, as Kafka counts; those in `done` come after it and are done already."""

    offset: int
    done: frozenset[int] = frozenset()

    def metadata(self) -> str:
        """What to commit beside the offset; `done` must be within `MAX_AHEAD` of it."""
        if not self.done:
            return ""
        bits = bytearray((max(self.done) - self.offset) // 8 + 1)
        for offset in self.done:
            byte, bit = divmod(offset - self.offset, 8)
            bits[byte] |= 1 << bit
        return _PREFIX + base64.b64encode(bits).decode()

    @classmethod
    def read(cls, offset: int, metadata: str) -> Progress:
        """What was committed. Metadata of others (an operator's tool has set the offset) says nothing of what is done.
        Raises `ValueError` for one that begins like ours and can't be read."""
        if not metadata.startswith(_PREFIX):
            return cls(offset)
        try:
            bits = base64.b64decode(metadata.removeprefix(_PREFIX), validate=True)
        except binascii.Error as error:
            raise ValueError(f"the metadata of a committed offset can't be read: {error}") from error
        numbers = (8 * byte + bit for byte, value in enumerate(bits) for bit in range(8) if value >> bit & 1)
        return cls(offset, frozenset(offset + number for number in numbers))
