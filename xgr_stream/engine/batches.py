"""A batch of requests → groups that are decoded together."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from xgr_stream.cache import PrefixCache, UserPrefix
from xgr_stream.catalog import Catalog, ResolvedFilter
from xgr_stream.config import EngineConfig
from xgr_stream.engine.answers import NOTHING_LEFT, Answers, Counters, Job
from xgr_stream.engine.context import ContextReader, TokenArray
from xgr_stream.engine.decode import BeamDecoder, PendingBeams
from xgr_stream.engine.legality import LegalityTables
from xgr_stream.engine.pending import PendingAnswers, PendingGroup
from xgr_stream.engine.prefixes import Plan, PrefixBuilder
from xgr_stream.engine.scoring import Candidates, CandidateScorer
from xgr_stream.engine.selection import selects
from xgr_stream.engine.tails import TailForks
from xgr_stream.engine.work import Work
from xgr_stream.errors import NothingLegal, XgrError
from xgr_stream.history import HistoryView
from xgr_stream.types import MAX_BEAM_WIDTH, NO_FILTER, RecommendRequest, RecommendResponse

_NOTHING: NDArray[np.int32] = np.empty(0, np.int32)


class Batches:
    """Begins batches: what is to be decoded together, appended before, and held meanwhile."""

    def __init__(
        self,
        version: str,
        config: EngineConfig,
        cache: PrefixCache,
        work: Work,
        prefixes: PrefixBuilder,
        *,
        tails: TailForks,
        decoder: BeamDecoder,
        scorer: CandidateScorer,
    ) -> None:
        """`version`: what answers name as their model."""
        self._version = version
        self.counters = Counters()
        self._config = config
        self._cache = cache
        self._work = work
        self._prefixes = prefixes
        self._tails = tails
        self._decoder = decoder
        self._scorer = scorer
        self._inference = torch.inference_mode()
        """Entered once at a time. As a decorator it would be made anew for each batch, which takes as long again."""

    def use(self, catalog: Catalog, reader: ContextReader, legality: LegalityTables) -> None:
        """Answer from this catalog, and with what reads and holds it, from now on."""
        self._catalog, self._reader, self._legality = catalog, reader, legality

    def begin(self, requests: Sequence[tuple[RecommendRequest, HistoryView | None]]) -> PendingAnswers:
        """Start answering them, as far as it goes without waiting for the device."""
        with self._inference:
            return self._begin(requests)

    def _begin(self, requests: Sequence[tuple[RecommendRequest, HistoryView | None]]) -> PendingAnswers:
        if self._cache.host is not None:  # where plans find what has come since
            self._work.reap()
        views = newest(view for _, view in requests)
        answers = Answers(self._catalog, self._version, self.counters)
        again = partial(self._again, views)
        pending = PendingAnswers(answers, len(requests), again, self._config.widened_beam_width)
        jobs: deque[Job] = deque()
        exploring: deque[Job] = deque()
        scoring: deque[Job] = deque()
        filters = self._catalog.resolve_all([request.filter for request, _ in requests])
        asked = {resolved for (request, _), resolved in zip(requests, filters, strict=True) if not request.filter.seen}
        empty = {resolved for resolved in asked if resolved.leaves_any() is False}
        for index, ((request, view), resolved) in enumerate(zip(requests, filters, strict=True)):
            try:
                if request.candidates is None:
                    if resolved in empty:
                        raise NothingLegal(NOTHING_LEFT)
                    job = self._job(index, request, resolved)
                    (jobs if request.temperature is None else exploring).append(job)
                    continue
                job = self._scoring_job(index, request, request.candidates)
                if job.width:
                    scoring.append(job)
                else:
                    pending.without_scores(job, view)
            except XgrError as error:
                pending.fail(index, request, error)
        for queue in (jobs, exploring, scoring):
            while queue:
                group = self._next_group(queue, views, pending)
                if group.jobs:
                    with self._work.decode_lane.current():
                        pending.add(self._begin_group(group))
        self._work.tend()
        return pending

    def _again(self, views: Mapping[str, HistoryView], wider: Sequence[RecommendRequest]) -> list[RecommendResponse]:
        return self.begin([(request, views.get(request.user_id)) for request in wider]).finish()

    def _job(self, index: int, request: RecommendRequest, resolved: ResolvedFilter) -> Job:
        width = request.rows(self._config.beam_width)
        if request.temperature is not None and self._catalog.delta is not None:
            width = max(width, min(2 * request.k, MAX_BEAM_WIDTH))  # what is drawn may be in both, two beams then
        tail = self._tails.check(request.tail)
        return Job(index, request, resolved, width, tail, selects=selects(request))

    def _scoring_job(self, index: int, request: RecommendRequest, item_ids: Sequence[str]) -> Job:
        candidates = Candidates.of(self._catalog, item_ids)
        tail = self._tails.check(request.tail)
        return Job(index, request, self._catalog.resolve(NO_FILTER), len(candidates.leaves), tail, candidates)

    def _unseen(self, job: Job, items: NDArray[np.int32]) -> Job:
        """The job with these interned items excluded too. Raises `NothingLegal` if that leaves none."""
        resolved = self._catalog.filters.without(job.filter, self._reader.rows(items))
        if resolved.leaves_any() is False:
            raise NothingLegal(NOTHING_LEFT)
        return replace(job, filter=resolved)

    def _next_group(self, jobs: deque[Job], views: dict[str, HistoryView], pending: PendingAnswers) -> _Group:
        """Take jobs off the queue that fit into one decode: its rows, and its users' pages. Those that need no
        decode are answered at once."""
        group = _Group()
        rows = 0
        while jobs:
            job = jobs[0]
            user_id = job.request.user_id
            view = views.get(user_id)
            plan = group.plans.get(user_id) or (None if view is None else self._prefixes.plan(view))
            if job.request.filter.seen:
                seen = _NOTHING if view is None else view.items if plan is None else plan.kept_items
                try:
                    job = self._unseen(job, seen)
                except NothingLegal as error:
                    pending.fail(job.index, job.request, error)
                    jobs.popleft()
                    continue
            if plan is None:
                pending.popular(job, view)
            else:
                rows += job.width
                pages = group.pages + self._tails.pages(job.tail)
                pages += 0 if user_id in group.plans else self._prefixes.pages(plan)
                if group.jobs and (rows > self._config.max_batch_rows or pages > self._cache.pool.num_pages):
                    break
                group.jobs.append(job)
                group.plans[user_id] = plan
                group.pages = pages
            jobs.popleft()
        return group

    def _begin_group(self, group: _Group) -> PendingGroup:
        work, lane = self._work, self._work.decode_lane
        begun = lane.mark()
        prefixes = work.run(self._prefixes, group.plans, work.request_appender)
        own = [prefixes[job.request.user_id] for job in group.jobs]
        release, ends, appended = work.pin(own), own, begun
        try:
            tails = [job.tail for job in group.jobs]
            if any(tail is not None for tail in tails):
                ends, release = self._forked(own, tails, release)
            if ends is not own or any(len(plan.tokens) for plan in group.plans.values()):
                appended = lane.mark()
            beams = self._begin_beams(group.jobs, ends)
        except BaseException:
            lane.mark().wait()  # forks are being computed
            release()
            raise
        lane.keep(beams.results.mark, group.plans, release)
        self._prefixes.seen(group.plans.values())
        states = [group.plans[job.request.user_id].state for job in group.jobs]
        return PendingGroup(group.jobs, own, states, beams, begun, appended)

    def _forked(
        self, prefixes: Sequence[UserPrefix], tails: Sequence[TokenArray | None], unpin: Callable[[], None]
    ) -> tuple[list[UserPrefix], Callable[[], None]]:
        """The prefixes with these tails, and what gives back the memory of both."""
        self._work.decode_lane.await_layers()  # a fork copies a page of all layers
        with ExitStack() as stack:
            ends = stack.enter_context(self._tails.forked(prefixes, tails))
            forks = stack.pop_all()

        def release() -> None:
            forks.close()
            unpin()

        return ends, release

    def _begin_beams(self, jobs: Sequence[Job], ends: Sequence[UserPrefix]) -> PendingBeams:
        """Jobs that all search, all draw or all score, after the ends of their contexts."""
        if jobs[0].candidates is not None:
            self._work.decode_lane.await_layers()
            leaves = [job.candidates.leaves for job in jobs if job.candidates is not None]
            return self._scorer.begin(ends, leaves, self._catalog.forest, self._legality)
        explorers = [] if jobs[0].request.temperature is None else [job.request for job in jobs]
        widths, filters = [job.width for job in jobs], [job.filter for job in jobs]
        return self._decoder.begin(ends, widths, filters, self._legality, explorers)


@dataclass(slots=True)
class _Group:
    """What goes into one decode."""

    jobs: list[Job] = field(default_factory=list)
    plans: dict[str, Plan] = field(default_factory=dict)
    """Of the jobs' users."""
    pages: int = 0
    """That their prefixes and forks take."""


def newest(views: Iterable[HistoryView | None]) -> dict[str, HistoryView]:
    """Each user's view with the most events, in order of appearance."""
    newest: dict[str, HistoryView] = {}
    for view in views:
        if view is not None:
            known = newest.setdefault(view.user_id, view)
            if view.event_count > known.event_count:
                newest[view.user_id] = view
    return newest
