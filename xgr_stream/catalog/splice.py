"""Another sorted arrangement out of one that it shares nearly all with: what stays is copied, in long runs."""

from __future__ import annotations

from itertools import pairwise
from time import sleep
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from xgr_stream.catalog.beside import PIECE, REST_S

BLOCK = 1 << 15
"""Values that are looked at one by one if anything changes among them; what lies between is one plain copy."""

Places = npt.NDArray[np.integer[Any]]
"""Ascending places of an array."""
NO_PLACES: npt.NDArray[np.int64] = np.zeros(0, np.int64)

_T = TypeVar("_T", bound=np.integer[Any])


def spliced(
    old: npt.NDArray[_T],
    gone: Places,
    at: Places,
    values: npt.NDArray[np.integer[Any]],
    up: Places = NO_PLACES,
    down: Places = NO_PLACES,
) -> npt.NDArray[_T]:
    """`old` without the places `gone`, each once, with `values` before the places `at`, and larger by 1 for each of
    `up`, smaller by 1 for each of `down`, at this place or before it. All places are those of `old`; `at` may be its
    end. `old` itself if nothing changes."""
    if not any(map(len, (gone, at, up, down))):
        return old
    new = np.empty(len(old) - len(gone) + len(at), old.dtype)
    bounds = _bounds(len(old), (gone, at, up, down))
    counts = [places.searchsorted(bounds) for places in (gone, at, up, down)]
    counts[1][-1] = len(at)
    runs = list(zip(bounds.tolist(), *(count.tolist() for count in counts), strict=True))
    for run, (begin, end) in enumerate(pairwise(runs)):
        (first, gone_first, at_first, up_first, down_first), (last, gone_last, at_last, up_last, down_last) = begin, end
        piece: npt.NDArray[np.integer[Any]] = old[first:last]
        into = new[first - gone_first + at_first : last - gone_last + at_last]
        more = up_first - down_first
        if begin[1:] == end[1:]:
            np.add(piece, more, out=into)
            continue
        if run and run % (PIECE // BLOCK) == 0:
            sleep(REST_S)
        if up_first < up_last or down_first < down_last:
            steps = np.bincount(up[up_first:up_last] - first, minlength=len(piece))
            steps -= np.bincount(down[down_first:down_last] - first, minlength=len(piece))
            steps[0] += more
            piece = piece + np.cumsum(steps, out=steps)
        elif more:
            piece = piece + more
        own, own_gone = at[at_first:at_last] - first, gone[gone_first:gone_last] - first
        if len(own_gone):
            piece = np.delete(piece, own_gone)
            own = own - own_gone.searchsorted(own)
        own = own + np.arange(len(own))
        stays = np.ones(len(into), np.bool_)
        stays[own] = False
        into[stays] = piece
        into[own] = values[at_first:at_last]
    return new


def places_behind(gone: Places, at: Places) -> Places:
    """Where the values that `spliced` takes in are in what it makes."""
    return at - gone.searchsorted(at) + np.arange(len(at))


def moved(places: Places, gone: Places, at: Places) -> Places:
    """Where what stood at these places, in any order, is in what `spliced` makes."""
    return places + at.searchsorted(places, side="right") - gone.searchsorted(places)


def bisect_each(
    values: npt.NDArray[np.integer[Any]], low: Places, high: Places, wanted: npt.NDArray[np.integer[Any]]
) -> Places:
    """The first place of each `values[low:high]`, which ascend, that is not below `wanted`; `high` if there is none."""
    low, high = low.astype(np.int64), high.astype(np.int64)
    while (searching := low < high).any():
        middle = (low + high) >> 1
        below = searching & (values.take(middle, mode="clip") < wanted)
        low = np.where(below, middle + 1, low)
        high = np.where(below, high, middle)
    return low


def _bounds(size: int, changes: tuple[Places, ...]) -> npt.NDArray[np.int64]:
    """Of runs of which each is a block that something changes in, or blocks in a row that nothing does."""
    blocks = max(1, -(-size // BLOCK))
    busy = np.zeros(blocks, np.bool_)
    for places in changes:
        busy[np.minimum(places // BLOCK, blocks - 1)] = True
    begins = busy.copy()
    begins[0] = True
    begins[1:] |= busy[:-1]
    return np.append(np.flatnonzero(begins) * BLOCK, size)
