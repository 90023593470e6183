"""Answers that the device is still working on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from xgr_stream.cache import UserPrefix
from xgr_stream.engine.answers import Answers, Job
from xgr_stream.engine.decode import PendingBeams
from xgr_stream.engine.lanes import Mark
from xgr_stream.engine.selection import Again, widened
from xgr_stream.errors import XgrError
from xgr_stream.history import HistoryView
from xgr_stream.types import CacheState, RecommendRequest, RecommendResponse, Shortfall


@dataclass(frozen=True, slots=True, eq=False)
class PendingGroup:
    """Requests in one decode."""

    jobs: Sequence[Job]
    prefixes: Sequence[UserPrefix]
    """Of the jobs' users, and how they were found:"""
    states: Sequence[CacheState]
    beams: PendingBeams
    begun: Mark
    appended: Mark


class PendingAnswers:
    """The responses to one batch of requests, in their order, as soon as the device has them."""

    def __init__(self, answers: Answers, count: int, again: Again, widest: int) -> None:
        """`again` and `widest`: what answers requests with more beams, and how many they may have at most."""
        self._again = again
        self._widest = widest
        self._answers = answers
        self._responses: list[RecommendResponse | None] = [None] * count
        self._groups: list[PendingGroup] = []

    def fail(self, index: int, request: RecommendRequest, error: XgrError) -> None:
        self._responses[index] = self._answers.failed(request, error)

    def popular(self, job: Job, view: HistoryView | None) -> None:
        """Nothing is in the user's context."""
        if job.candidates is None:
            self._responses[job.index] = self._answers.popular(job, view)
        else:
            self._responses[job.index] = self._answers.without_scores(job, view, unknown=True)

    def without_scores(self, job: Job, view: HistoryView | None) -> None:
        """None of the job's candidates has one."""
        self._responses[job.index] = self._answers.without_scores(job, view, unknown=view is None)

    def add(self, group: PendingGroup) -> None:
        self._groups.append(group)

    def done(self) -> bool:
        """Whether `finish` would not block, unless a request's caps ask for more beams."""
        return all(group.beams.results.mark.done() for group in self._groups)

    def finish(self) -> list[RecommendResponse]:
        """Wait for the device, and answer. To be called once, on the thread that called `begin`."""
        short: list[tuple[Job, RecommendResponse]] = []
        for group in self._groups:
            beams = group.beams.wait()
            stages_ms = {
                "append": group.appended.ms_since(group.begun),
                "decode": group.beams.results.mark.ms_since(group.appended),
            }
            made = self._answers.from_beams if group.jobs[0].candidates is None else self._answers.from_scores
            responses = made(group.jobs, group.prefixes, group.states, beams, stages_ms)
            for job, response in zip(group.jobs, responses, strict=True):
                self._responses[job.index] = response
                if response.shortfall is not None and response.shortfall is Shortfall.BEAMS:
                    short.append((job, response))
        if short:
            asked = [(job.request, job.width, response) for job, response in short]
            for (job, _), response in zip(short, widened(asked, self._again, self._widest), strict=True):
                self._responses[job.index] = response
        return [response for response in self._responses if response is not None]
