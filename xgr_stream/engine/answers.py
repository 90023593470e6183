"""Finished beams → responses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from xgr_stream.cache import UserPrefix
from xgr_stream.catalog import Catalog, ResolvedFilter
from xgr_stream.engine.context import TokenArray
from xgr_stream.errors import EngineError, XgrError
from xgr_stream.history import HistoryView
from xgr_stream.types import CacheState, Recommendation, RecommendRequest, RecommendResponse, Status


@dataclass(slots=True)
class Counters:
    """What the engine has done since it was loaded."""

    requests: int = 0
    tokens_appended: int = 0
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


class Answers:
    """Makes the responses of one batch, which all name the same model and catalog version."""

    def __init__(self, catalog: Catalog, model_version: str, counters: Counters) -> None:
        self._catalog = catalog
        self._model_version = model_version
        self._catalog_version = catalog.version
        self._counters = counters

    def from_beams(
        self,
        job: Job,
        prefix: UserPrefix,
        cache: CacheState,
        beams: tuple[NDArray[np.int32], NDArray[np.float32]],
        stages_ms: Mapping[str, float],
    ) -> RecommendResponse:
        """`beams`: leaves [width] and scores [width], best first; -1 marks the missing ones, which are last."""
        leaves, scores = beams
        found = int(np.count_nonzero(leaves >= 0))
        # A search over legal items finds one, unless its scores cannot be compared.
        if not found or not np.isfinite(scores[:found]).all():
            return self.failed(job.request, EngineError("the model's scores are not numbers; does its dtype overflow?"))
        k = job.request.k
        # A legal leaf has an item that may be returned, so the first k leaves have k.
        positions, rows = self._catalog.items_at(leaves[: min(k, found)], job.filter)
        self._counters.beams_dead += job.width - found
        # Positions come in order: those that are missing belong to leaves that the catalog does not confirm.
        self._counters.invalid_items += min(k, found) - 1 - int(np.count_nonzero(np.diff(positions)))
        return RecommendResponse(
            request_id=job.request.request_id,
            user_id=job.request.user_id,
            status=Status.OK,
            items=self._items(rows[:k], scores[positions[:k]]),
            event_count=prefix.event_count,
            event_offset=prefix.event_offset,
            model_version=self._model_version,
            catalog_version=self._catalog_version,
            cache=cache,
            stages_ms=stages_ms,
            tail_computed=job.tail is not None,
        )

    def popular(self, job: Job, view: HistoryView | None) -> RecommendResponse:
        """For a user of whom no event with a known item is in context: what is popular, each with a score of 0."""
        rows = self._catalog.popular(job.request.k, job.filter)
        return RecommendResponse(
            request_id=job.request.request_id,
            user_id=job.request.user_id,
            status=Status.UNKNOWN_USER,
            items=self._items(rows, np.zeros(len(rows), dtype=np.float32)),
            event_count=0 if view is None else view.event_count,
            event_offset=-1 if view is None else view.last_offset,
            model_version=self._model_version,
            catalog_version=self._catalog_version,
        )

    def failed(self, request: RecommendRequest, error: XgrError) -> RecommendResponse:
        return RecommendResponse(
            request_id=request.request_id,
            user_id=request.user_id,
            status=Status.ERROR,
            error=error.code,
            message=str(error),
            model_version=self._model_version,
            catalog_version=self._catalog_version,
        )

    def _items(self, rows: NDArray[np.int32], scores: NDArray[np.float32]) -> tuple[Recommendation, ...]:
        ids, sids = self._catalog.item_ids, self._catalog.sids[rows].tolist()
        return tuple(
            Recommendation(ids[row], score, tuple(sid))
            for row, score, sid in zip(rows.tolist(), scores.tolist(), sids, strict=True)
        )
