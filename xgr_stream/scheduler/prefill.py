"""Chunked prefill: a request whose prefix is at hand waits for a chunk of another's, not for all of it.

As Sarathi-Serve has it, except that a chunk is a step of its own, not part of a batch of decodes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Sequence
from typing import Any, NamedTuple

from xgr_stream.history import HistoryView
from xgr_stream.metrics import Metrics
from xgr_stream.scheduler.clock import Clock
from xgr_stream.scheduler.pace import Pace, Step
from xgr_stream.scheduler.policy import AGEING_S
from xgr_stream.scheduler.ports import DeviceEngine, WarmReport
from xgr_stream.scheduler.versions import Versions
from xgr_stream.scheduler.work import Work

SHARE = 0.5
"""Of a batch's time, that the chunks behind it may take if they are more than one: batches of a busy device are long,
and with a chunk of 3 ms behind each of 30 ms prefills would not keep up."""
PATIENCE = 0.3
"""Share of a request's time, or of `AGEING_S`, after which nobody goes before the rest of its prefill."""
OTHERS_S = 1.0
"""So long after the last request whose prefix was at hand, prefills are in chunks; with nobody to wait they are whole,
since chunks take a tenth longer."""


class _Prefill(NamedTuple):
    engine: DeviceEngine
    view: HistoryView
    work: Work | None
    """Who asks; None: nobody yet."""
    chunks: Generator[WarmReport, None, None]


class Prefills:
    """The prefill under way, one at a time. Used by the device thread."""

    def __init__(
        self,
        versions: Versions[Any],
        pace: Pace,
        clock: Clock,
        metrics: Metrics,
        engine_of: Callable[[Work], DeviceEngine],
    ) -> None:
        """`engine_of`: which one is to answer a request."""
        self._versions = versions
        self._engine_of = engine_of
        self._pace = pace
        self._chunk_tokens = pace.chunk_tokens
        self._clock = clock
        self._metrics = metrics
        self._running: _Prefill | None = None
        self._others_at = float("-inf")
        self._abandoned: _Prefill | None = None
        self._gave_way_to: Work | None = None
        """Until it has been tried again no request's prefill is taken on."""

    @property
    def under_way(self) -> bool:
        return self._running is not None

    @property
    def ahead(self) -> HistoryView | None:
        """Whose prefill is under way though nobody has asked for it yet."""
        return None if self._running is None or self._running.work is not None else self._running.view

    @property
    def most_ahead(self) -> float:
        """Tokens that a user without a prefix may lack to be brought up to date now: there is one prefill at a time."""
        return self._chunk_tokens if self.under_way else float("inf")

    def look_at(self, work: Work) -> None:
        """See whether its prefix is to be computed in chunks; not before what came before it has been done."""
        if self._chunk_tokens and work.view is not None:
            work.long = self.is_long(self._engine_of(work), [work.view])

    def chunks_s(self, work: Work | None, beside_s: float) -> float:
        """How long the chunks behind a batch that takes `beside_s` may be, unless they are overdue: one of them always
        may."""
        return 0.0 if self._asking(work) is None else SHARE * beside_s

    def overdue(self, work: Work | None) -> bool:
        """Whether who asks for what is under way, or else this request, has waited so long that nobody goes before the
        rest of it."""
        asking = self._asking(work)
        if asking is None:
            return False
        return self._clock.now() > asking.arrived + PATIENCE * min(asking.due - asking.arrived, AGEING_S)

    def _asking(self, work: Work | None) -> Work | None:
        """Who asks for what is under way, else `work`."""
        running = self._running
        return work if running is None or running.work is None else running.work

    def chunk_s(self, version: str) -> float:
        """What one is thought to take."""
        return self._pace.append_s(Step(version, 1, self._chunk_tokens))

    def split(self, waiting: Sequence[Work]) -> tuple[Sequence[Work], Work | None]:
        """The requests that may be decoded now, and the first one to be prefilled before it is."""
        long = [work for work in waiting if work.long]
        if len(long) < len(waiting):
            self._others_at = self._clock.now()
        if not long or (self._running is None and self._clock.now() > self._others_at + OTHERS_S):
            return waiting, None
        for work in long:
            self.look_at(work)
        ready = [work for work in waiting if not work.long]
        return ready, next((work for work in long if work.long), None)

    def is_long(self, engine: DeviceEngine, views: Sequence[HistoryView]) -> bool:
        """Whether bringing these up to date is a prefill to be done in chunks: of one user, who has no prefix."""
        (view, *others) = views
        if others or not self._chunk_tokens or engine.is_resident(view.user_id):
            return False
        return engine.pending_tokens(view) > self._chunk_tokens

    def begin(self, engine: DeviceEngine, view: HistoryView) -> None:
        """Take on a user for whom nobody has asked yet; nothing else is under way."""
        self._running = _Prefill(engine, view, None, engine.prefilling(view, self._chunk_tokens))

    def take(self, work: Work | None) -> DeviceEngine | None:
        """Whose chunk is next: that of what is under way, else `work` is taken on. None: there is nothing to do."""
        self.tidy()
        if self._gave_way_to is not None and not self._waits(self._gave_way_to):
            self._gave_way_to = None
        may_begin = self._running is None and self._gave_way_to is None
        if may_begin and work is not None and work.view is not None and self._waits(work):
            engine = self._engine_of(work)
            chunks = engine.prefilling(work.view, self._chunk_tokens)
            self._running = _Prefill(engine, work.view, work, chunks)
        return None if self._running is None else self._running.engine

    def step(self) -> WarmReport | None:
        """Start the next chunk of what is under way; None: there was none. What the engine raises is the prefill's end;
        the request is then computed as if there were no chunks."""
        running = self._running
        if running is None:
            return None
        report = None
        try:
            report = next(running.chunks, None)
        finally:
            if report is None or report.users:
                self._running = None
                if running.work is not None:
                    running.work.long = False
                    running.work.prefilled = report is not None
        return report

    def forget(self, user_ids: Collection[str]) -> None:
        """Give up what is under way for one of these."""
        if self._running is not None and self._running.view.user_id in user_ids:
            self.drop()

    def give_way(self, engine: DeviceEngine, work: Work) -> bool:
        """Give up what is under way if this engine computes it, for the memory that `work` needs, which is to wait
        again. False: there is nothing to give up. A request's prefill begins again behind it."""
        running = self._running
        if running is None or running.engine is not engine:
            return False
        self._metrics.appends_shed.inc(running.work is None)
        self._gave_way_to = work
        self.drop()
        return True

    def tidy(self) -> None:
        """Give up what is under way if nobody wants it any more."""
        if self._running is not None and not self._is_wanted(self._running):
            self.drop()

    def drop(self) -> None:
        """Give up what is under way."""
        running, self._running = self._running, None
        if running is not None:
            running.chunks.close()

    def abandon(self) -> None:
        """Give it up with the device, which can't be asked to end it: it is held, so that nothing else asks either."""
        self._abandoned, self._running = self._running, None

    def _is_wanted(self, prefill: _Prefill) -> bool:
        return prefill.engine in self._versions.engines and (prefill.work is None or self._waits(prefill.work))

    def _waits(self, work: Work) -> bool:
        return work.waits and not work.promise.cancelled() and not work.expired(self._clock.now())
