"""The sizes that captured graphs come in: what a step computes is rounded up to one of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

PAGE_COLUMNS = 16
"""Page tables grow in steps of this."""


def bucket(count: int) -> int:
    """The next size: powers of two to 64, then multiples of 64, from 1,024 on of 128: a matrix product takes whole
    tiles of so many rows anyway."""
    if count <= 64:
        return max(1, 1 << (count - 1).bit_length())
    step = 64 if count <= 1024 else 128
    return -(-count // step) * step


class DecodeShape(NamedTuple):
    """What a decode's tensors look like."""

    requests: int
    rows: tuple[int, ...]
    """Beams that each level chooses."""
    page_columns: int
    """Pages of the longest prefix."""

    @classmethod
    def bucket(cls, requests: int, rows: Sequence[int], page_columns: int) -> DecodeShape:
        """The captured shape that these fit into."""
        columns = -(-page_columns // PAGE_COLUMNS) * PAGE_COLUMNS
        return cls(1 << (requests - 1).bit_length(), tuple(map(bucket, rows)), columns)


FEW_USERS, MANY_USERS, MOST_USERS = 4, 64, 512
"""Users of an append, of those captured ahead."""
APPEND_SIZES = (
    *((min(tokens, MANY_USERS), tokens) for tokens in (4, 16, 64, 128, 192, 256, 384)),
    *((FEW_USERS, tokens) for tokens in (*range(384, 1024, 64), *range(1024, 2049, 128))),
    *((users, tokens) for users in (MANY_USERS, MOST_USERS) for tokens in (768, 1024, 1536, 2048)),
)
"""(users, tokens) of the appends that are captured ahead. Few users' many tokens are prefills, where each row counts;
few tokens cost what reading the weights costs, however many they are."""
_SMALLEST_FIRST = sorted(APPEND_SIZES, key=lambda sizes: (sizes[1], sizes[0]))


class AppendShape(NamedTuple):
    """What an append's tensors look like."""

    users: int
    tokens: int
    wanted: int
    """Users whose last hidden state is computed."""
    page_columns: int

    @classmethod
    def bucket(cls, users: int, tokens: int, page_columns: int) -> AppendShape:
        """The captured shape that these fit into: one of `APPEND_SIZES`, unless they are more than any."""
        columns = -(-page_columns // PAGE_COLUMNS) * PAGE_COLUMNS
        for most, size in _SMALLEST_FIRST:
            if most >= users and size >= tokens:
                return cls(most, size, most, columns)
        most = 1 << (users - 1).bit_length()
        return cls(most, bucket(tokens), most, columns)
