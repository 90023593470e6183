"""What a request's caps and score threshold leave of a ranked list of items."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from xgr_stream.catalog import Catalog, ResolvedFilter
from xgr_stream.catalog.forest import JoinedTags
from xgr_stream.catalog.tags import TagIndex
from xgr_stream.errors import is_out_of_memory
from xgr_stream.types import Caps, RecommendRequest, RecommendResponse, Shortfall, Status

logger = logging.getLogger(__name__)

WIDER = 4
"""Times as many beams when a request is decoded again."""

Again = Callable[[Sequence[RecommendRequest]], list[RecommendResponse]]
"""Answers requests anew, from the histories that they were first answered from or newer ones."""


POPULAR = 4_096
"""Popular items that caps choose from, at most: 30 ms. They may leave a handful of millions."""


class Popular(NamedTuple):
    rows: NDArray[np.int32]
    """[at most k]"""
    shortfall: Shortfall | None


class Selected(NamedTuple):
    places: NDArray[np.intp]
    """Of the items that are taken, in the list. [at most k]"""
    cut: bool
    """Whether an item's score was too low, and all behind it in the list have lower ones."""


def selects(request: RecommendRequest) -> bool:
    """Whether anything but the order decides which items are taken."""
    return bool(request.caps) or request.min_score is not None


def select(
    request: RecommendRequest, rows: NDArray[np.int32], scores: NDArray[np.float32], tags: TagIndex | JoinedTags
) -> Selected:
    """Of items [items] with their scores, in their order."""
    good: NDArray[np.intp] = np.arange(len(rows))
    if request.min_score is not None:
        good = np.flatnonzero(scores.astype(np.float64) >= request.min_score)
    places = good[capped(rows[good], request, tags)] if request.caps else good[: request.k]
    return Selected(places, len(good) < len(rows) and request.temperature is None)


def capped(rows: NDArray[np.int32], request: RecommendRequest, tags: TagIndex | JoinedTags) -> NDArray[np.intp]:
    """Places of the first k items that exceed no cap: an item is taken if all its tags have room, and then takes some
    of each. [at most k]"""
    k, caps = request.k, cast(Caps, request.caps)
    room: dict[str, int | None] = {}
    places: list[int] = []
    for place, row in enumerate(rows.tolist()):
        own = tags.of_row(row)
        for tag in own:
            if tag not in room:
                room[tag] = min((most for pattern, most in caps if covers(pattern, tag)), default=None)
        if all(room[tag] != 0 for tag in own):
            places.append(place)
            if len(places) == k:
                break
            for tag in own:
                left = room[tag]
                room[tag] = None if left is None else left - 1
    return np.array(places, dtype=np.intp)


def covers(pattern: str, tag: str) -> bool:
    """Whether the tag is the pattern, or begins with what stands before its `*`."""
    return tag.startswith(pattern[:-1]) if pattern.endswith("*") else tag == pattern


def popular(catalog: Catalog, request: RecommendRequest, resolved: ResolvedFilter) -> Popular:
    """The most popular items that the filter and the caps leave."""
    if not request.caps:
        rows = catalog.popular(request.k, resolved)
        return Popular(rows, None if len(rows) == request.k else Shortfall.EXHAUSTED)
    ahead = min(request.k, POPULAR)
    while True:
        rows = catalog.popular(ahead, resolved)
        taken = rows[capped(rows, request, catalog.tags)]
        if len(taken) == request.k:
            return Popular(taken, None)
        if len(rows) < ahead:
            return Popular(taken, Shortfall.EXHAUSTED)
        if ahead == POPULAR:
            return Popular(taken, Shortfall.BEAMS)
        ahead = min(8 * ahead, POPULAR)


def widened(
    short: Sequence[tuple[RecommendRequest, int, RecommendResponse]], again: Again, widest: int
) -> list[RecommendResponse]:
    """For requests, the beams that they had, and answers that fell short of k items for want of beams: answers from
    more beams, where there may be more and the device has the memory. Blocks."""
    answers = [response for _, _, response in short]
    asked = [place for place, (_, width, _) in enumerate(short) if width < widest]
    if not asked:
        return answers
    requests = [replace(short[place][0], beam_width=min(WIDER * short[place][1], widest)) for place in asked]
    try:
        responses = again(requests)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        # Raised, it would fail the batch, whose other requests lack nothing.
        logger.warning("there is no memory for more beams of %d requests; they fall short", len(asked), exc_info=True)
        return answers
    for place, wider in zip(asked, responses, strict=True):
        first = answers[place]
        if wider.status is Status.OK:  # else the first is better than nothing
            stages_ms = {name: first.stages_ms.get(name, 0.0) + ms for name, ms in wider.stages_ms.items()}
            answers[place] = replace(wider, cache=first.cache, stages_ms=stages_ms)
    return answers
