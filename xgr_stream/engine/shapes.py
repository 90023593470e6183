"""The sizes that captured graphs come in: what a step computes is rounded up to one of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

PAGE_COLUMNS = 16
"""Page tables grow in steps of this."""


def bucket(count: int) -> int:
    """The next size: powers of two to 64, then multiples of 64, from 1,024 on of 128: a matrix product takes whole
    tiles of so many rows anyway."""
    if count <= 64:
        return max(1, 1 << (count - 1).bit_length())
    step = 64 if count <= 1024 else 128
    return -(-count // step) * step


@dataclass(frozen=True, slots=True)
class DecodeShape:
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


@dataclass(frozen=True, slots=True)
class AppendShape:
    """What an append's tensors look like."""

    users: int
    tokens: int
    wanted: int
    """Users whose last hidden state is computed."""
    page_columns: int

    @classmethod
    def bucket(cls, users: int, tokens: int, page_columns: int) -> AppendShape:
        columns = -(-page_columns // PAGE_COLUMNS) * PAGE_COLUMNS
        users = 1 << (users - 1).bit_length()
        return cls(users, bucket(tokens), users, columns)
