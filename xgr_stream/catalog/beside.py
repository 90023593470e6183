"""What a merge does on a thread of its own beside the batches: in pieces, so that it never has the GIL for long."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from time import sleep
from typing import TypeVar

import numpy as np
import numpy.typing as npt

PIECE = 1 << 17
"""Values between two rests: 0.2 ms of np.cumsum, which holds the GIL as long as it takes, of 20 million 20 ms; so do
np.repeat (100 ms and more) and np.bincount."""
STEP = 1024
"""Values that Python handles between two rests: half a millisecond."""
REST_S = 0.0005
"""The hundred calls into torch that begin a batch let go of the GIL, and beside a thread that takes it each time they
would take 8 ms instead of 2."""

_T = TypeVar("_T")


def pieces(count: int) -> Iterator[slice]:
    """`PIECE` places of an array each, with a rest between them."""
    for first in range(0, count, PIECE):
        if first:
            sleep(REST_S)
        yield slice(first, first + PIECE)


def none_of(count: int) -> npt.NDArray[np.bool_]:
    """[count], all false. np.zeros holds the GIL while it clears what came from the heap: 20 million, 14 ms."""
    return np.full(count, False)


def in_steps(values: Iterable[_T]) -> Iterator[tuple[_T, ...]]:
    """`STEP` values each, with a rest between them."""
    left = iter(values)
    part = tuple(islice(left, STEP))
    while part:
        yield part
        part = tuple(islice(left, STEP))
        if part:
            sleep(REST_S)
