"""Finished beams → responses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xgr_stream.cache import UserPrefix
from xgr_stream.catalog import Catalog, ResolvedFilter
from xgr_stream.catalog.filters import TagsKey
from xgr_stream.engine.context import TokenArray
from xgr_stream.engine.decode import Beams
from xgr_stream.engine.scoring import Candidates
from xgr_stream.engine.selection import popular, select
from xgr_stream.errors import EngineError, NothingLegal, XgrError
from xgr_stream.history import HistoryView
from xgr_stream.types import (
    CacheState,
    Recommendation,
    RecommendRequest,
    RecommendResponse,
    Shortfall,
    Status,
    Unscored,
)

NOTHING_LEFT = "the request's filters leave no live item of the catalog"
NOT_NUMBERS = "the model's scores are not numbers; does its dtype overflow?"


@dataclass(slots=True)
class Counters:
    """What the engine has done since it was loaded."""

    requests: int = 0
    beams_dead: int = 0
    """Beams asked for that found no legal semantic ID: the filtered catalog had fewer."""
    invalid_items: int = 0
    """Semantic IDs that the search returned and the catalog does not confirm as legal. Always 0."""


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """One request of a batch that can be answered with items."""

    index: int
    """Its place in the batch."""
    request: RecommendRequest
    filter: ResolvedFilter
    width: int
    tail: TokenArray | None
    """The request's own; None: the checkpoint's."""
    candidates: Candidates | None = None
    """What is to be scored; None: items are to be found."""
    selects: bool = False
    """Whether caps or a threshold decide, too, which of the items that are found are taken."""


class Answers:
    """Makes the responses of one batch, which all name the same model and catalog version."""

    def __init__(self, catalog: Catalog, model_version: str, counters: Counters) -> None:
        self._catalog = catalog
        self._model_version = model_version
        self._catalog_version = catalog.version
        self._counters = counters

    def from_beams(
        self,
        jobs: Sequence[Job],
        prefixes: Sequence[UserPrefix],
        states: Sequence[CacheState],
        beams: Beams,
        stages_ms: Mapping[str, float],
    ) -> list[RecommendResponse]:
        """One response per job, all of one decode: arrays are looked at for all of them together. `beams`: in each
        job's rows the missing ones, of leaf -1, come last."""
        tops = self._tops(jobs, beams)
        leaves = _joined([beams.leaves[top] for top in tops])
        scores = _joined([beams.scores[top] for top in tops])
        positions, rows = self._catalog.items_at(leaves)
        offsets = list(accumulate([top.stop - top.start for top in tops], initial=0))
        cuts = _cuts(positions, offsets)
        allowed = _allowed(jobs, rows, cuts)
        if not allowed.all():
            positions, rows = positions[allowed], rows[allowed]
            cuts = _cuts(positions, offsets)
        # Leaves without an item that may be returned are those that the catalog does not confirm.
        self._counters.invalid_items += len(leaves) - len(set(positions.tolist()))
        ranked = scores[positions]
        items = self._items(rows, ranked)
        responses = []
        for job, prefix, state, top, (first, last) in zip(jobs, prefixes, states, tops, pairwise(cuts), strict=True):
            if top.start == top.stop:
                responses.append(self.failed(job.request, self._why_none(job)))
                continue
            request, shortfall = job.request, None
            if job.selects:
                selected = select(request, rows[first:last], ranked[first:last], self._catalog.tags)
                own = tuple(items[first + place] for place in selected.places.tolist())
                if len(own) < request.k:
                    # With fewer beams than asked for, none was left out at any level.
                    found = top.stop - top.start
                    complete = found < job.width or found == self._catalog.forest.num_leaves
                    shortfall = Shortfall.THRESHOLD if selected.cut else Shortfall.BEAMS
                    shortfall = Shortfall.EXHAUSTED if complete else shortfall
            else:
                # A legal leaf has an item that may be returned, so the first k leaves have k.
                own = items[first : min(last, first + request.k)]
                if len(own) < request.k:
                    shortfall = Shortfall.EXHAUSTED
            responses.append(
                self._response(
                    request,
                    Status.OK,
                    items=own,
                    event_count=prefix.event_count,
                    event_offset=prefix.event_offset,
                    cache=state,
                    stages_ms=stages_ms,
                    tail_computed=job.tail is not None,
                    shortfall=shortfall,
                )
            )
        return responses

    @staticmethod
    def _why_none(job: Job) -> XgrError:
        """A search finds an item unless there is none, or scores can't be compared."""
        return EngineError(NOT_NUMBERS) if job.filter.leaves_any() else NothingLegal(NOTHING_LEFT)

    def _tops(self, jobs: Sequence[Job], beams: Beams) -> list[slice]:
        """Each job's best k rows, or all of them where more than their order decides, or what it found; none if its
        scores can't be compared."""
        leaves, scores = beams.leaves, beams.scores
        finite = bool(np.isfinite(scores[: beams.row_starts[-1]]).all())
        tops = []
        for job, (start, end) in zip(jobs, pairwise(beams.row_starts), strict=True):
            found = end - start if leaves[end - 1] >= 0 else int(np.count_nonzero(leaves[start:end] >= 0))
            self._counters.beams_dead += job.width - found
            if not finite and not np.isfinite(scores[start : start + found]).all():
                found = 0
            most = found if job.selects else min(job.request.k, found)
            tops.append(slice(start, start + most))
        return tops

    def from_scores(
        self,
        jobs: Sequence[Job],
        prefixes: Sequence[UserPrefix],
        states: Sequence[CacheState],
        beams: Beams,
        stages_ms: Mapping[str, float],
    ) -> list[RecommendResponse]:
        """`from_beams` for jobs with candidates: `beams` are their leaves, ascending."""
        places = zip(jobs, prefixes, states, pairwise(beams.row_starts), strict=True)
        return [
            self._scored(job, prefix, state, beams.leaves[first:last], beams.scores[first:last], stages_ms)
            for job, prefix, state, (first, last) in places
        ]

    def _scored(
        self,
        job: Job,
        prefix: UserPrefix,
        cache: CacheState,
        leaves: NDArray[np.int32],
        scores: NDArray[np.float32],
        stages_ms: Mapping[str, float],
    ) -> RecommendResponse:
        if not np.isfinite(scores).all():
            return self.failed(job.request, EngineError(NOT_NUMBERS))
        candidates = self._candidates_of(job)
        own = scores[np.searchsorted(leaves, self._catalog.forest.leaves.take(candidates.rows))]
        items = sorted(self._items(candidates.rows, own), key=lambda item: (-item.score, item.sid, item.item_id))
        return self._response(
            job.request,
            Status.OK,
            items=tuple(items),
            event_count=prefix.event_count,
            event_offset=prefix.event_offset,
            cache=cache,
            stages_ms=stages_ms,
            tail_computed=job.tail is not None,
            unscored=candidates.unscored,
        )

    def without_scores(self, job: Job, view: HistoryView | None, *, unknown: bool) -> RecommendResponse:
        """For candidates of which none has a score, or, if the user is `unknown`, none would have one."""
        known = self._candidates_of(job)
        unscored = {
            item_id: known.unscored.get(item_id, Unscored.UNKNOWN_USER) for item_id in job.request.candidates or ()
        }
        return self._response(
            job.request,
            Status.UNKNOWN_USER if unknown else Status.OK,
            event_count=0 if view is None else view.event_count,
            event_offset=-1 if view is None else view.last_offset,
            unscored=unscored,
        )

    def _response(self, request: RecommendRequest, status: Status, **rest: Any) -> RecommendResponse:
        """To this request, from the batch's model and catalog."""
        return RecommendResponse(
            request_id=request.request_id,
            user_id=request.user_id,
            status=status,
            model_version=self._model_version,
            catalog_version=self._catalog_version,
            **rest,
        )

    def _candidates_of(self, job: Job) -> Candidates:
        if job.candidates is None:
            raise EngineError(f"request {job.request.request_id} must name candidates, and it does not")
        return job.candidates

    def popular(self, job: Job, view: HistoryView | None) -> RecommendResponse:
        """For a user of whom no event with a known item is in context: what is popular, each with a score of 0."""
        rows, shortfall = popular(self._catalog, job.request, job.filter)
        ranked = self._catalog.columns.popularity is not None
        if ranked and shortfall is Shortfall.EXHAUSTED and not len(rows) and not job.filter.leaves_any():
            return self.failed(job.request, NothingLegal(NOTHING_LEFT))
        return self._response(
            job.request,
            Status.UNKNOWN_USER,
            items=self._items(rows, np.zeros(len(rows), dtype=np.float32)),
            event_count=0 if view is None else view.event_count,
            event_offset=-1 if view is None else view.last_offset,
            shortfall=shortfall,
        )

    def failed(self, request: RecommendRequest, error: XgrError) -> RecommendResponse:
        return self._response(
            request,
            Status.ERROR,
            error=error.code,
            message=str(error),
        )

    def _items(self, rows: NDArray[np.int32], scores: NDArray[np.float32]) -> tuple[Recommendation, ...]:
        ids, sids = self._catalog.ids_of(rows), self._catalog.sids_of(rows).tolist()
        return tuple(map(Recommendation, ids, scores.tolist(), map(tuple, sids)))


def _joined(parts: Sequence[NDArray[Any]]) -> NDArray[Any]:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _cuts(positions: NDArray[np.int32], offsets: Sequence[int]) -> Sequence[int]:
    """Where among these places, ascending and each below offsets[-1], those from each of `offsets` on begin."""
    if len(offsets) == 2:
        return [0, len(positions)]
    cuts: list[int] = np.searchsorted(positions, offsets).tolist()
    return cuts


def _allowed(jobs: Sequence[Job], rows: NDArray[np.int32], cuts: Sequence[int]) -> NDArray[np.bool_]:
    """Whether each item may be returned to its job, which owns rows cuts[i] : cuts[i + 1]."""
    filters = [job.filter for job in jobs]
    if all(resolved is filters[0] for resolved in filters):  # most often none filters
        return filters[0].allows(rows)
    # For as many at once as can be: there are few of each.
    allowed = filters[0].live(rows)
    with_tags: dict[TagsKey, list[int]] = {}
    for index, resolved in enumerate(filters):
        if resolved.tags_key is not None:
            with_tags.setdefault(resolved.tags_key, []).append(index)
    for indices in with_tags.values():
        own = np.concatenate([np.arange(cuts[index], cuts[index + 1]) for index in indices])
        allowed[own] &= filters[indices[0]].tagged(rows[own])
    if any(len(resolved.excluded) for resolved in filters):
        keys = filters[0].keys(rows)
        for resolved, (first, last) in zip(filters, pairwise(cuts), strict=True):
            if len(resolved.excluded):
                allowed[first:last] &= resolved.not_excluded(keys[first:last])
    return allowed
