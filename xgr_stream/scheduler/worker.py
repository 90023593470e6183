"""The one thread that owns the device."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from queue import Empty
from typing import Any, TypeVar

from xgr_stream.config import EngineConfig
from xgr_stream.errors import DeviceLost, EngineError, ShuttingDown, XgrError
from xgr_stream.history import HistoryView
from xgr_stream.metrics import Metrics
from xgr_stream.scheduler.appends import AppendQueue
from xgr_stream.scheduler.choosing import CONSIDERED, Choice
from xgr_stream.scheduler.clock import Clock
from xgr_stream.scheduler.decoding import Decoding
from xgr_stream.scheduler.faults import Fault, answer_to, fault
from xgr_stream.scheduler.gauges import Gauges
from xgr_stream.scheduler.intake import Intake, Item
from xgr_stream.scheduler.pace import Pace
from xgr_stream.scheduler.policy import hold_s
from xgr_stream.scheduler.ports import DeviceEngine
from xgr_stream.scheduler.prefill import Prefills
from xgr_stream.scheduler.promise import Promise
from xgr_stream.scheduler.shadow import Shadow
from xgr_stream.scheduler.switch_interval import restore_switch_interval, shorten_switch_interval
from xgr_stream.scheduler.timer_slack import EXACT_NS, set_timer_slack
from xgr_stream.scheduler.versions import Versions
from xgr_stream.scheduler.warming import Warming
from xgr_stream.scheduler.work import Work, WorkQueue
from xgr_stream.types import RecommendRequest

logger = logging.getLogger(__name__)

T = TypeVar("T")

BATCHES_IN_FLIGHT = 2
"""The device works on one while the next is prepared, and is queued behind it without a gap."""
POLL_S = 5e-5
"""How often the device thread looks for new requests while it waits for a batch."""
SWEEP_S = 0.002
"""How often the queue is searched for requests that have expired or were withdrawn."""


class DeviceWorker:
    """Runs the engines of a device on a thread of its own. Every promise it gives is kept, with a response.

    A batch is of one version of the model. What fails on a challenger is answered by the primary.

    `submit`, `want_appends`, `call`, `between_batches` and `forget` may be called on any thread and never block;
    `together` is for one thread at a time. Promises are kept on the device thread, or inside `submit` for a request
    that is refused: their callbacks must be short and must not raise. `on_lost` is called once, on the device thread,
    when the device gives nothing but errors any more: all that waits has been answered then, and so is all that still
    comes.
    """

    def __init__(
        self,
        engine: DeviceEngine | Versions[Any],
        config: EngineConfig,
        clock: Clock,
        metrics: Metrics,
        *,
        on_lost: Callable[[DeviceLost], None] = lambda _: None,
    ) -> None:
        self._versions: Versions[Any] = engine if isinstance(engine, Versions) else Versions(engine)
        self._shadow = Shadow(self._versions, metrics)
        self._config = config
        self._clock = clock
        self._metrics = metrics
        self._on_lost = on_lost
        self._queue = WorkQueue()
        self._appends = AppendQueue()
        self._pace = Pace(config, clock)
        self._intake = Intake(self._versions, self._queue, self._pace, clock)
        self._choice = Choice(self._versions, self._queue, self._appends, self._pace, clock, metrics)
        self._prefills = Prefills(self._versions, self._pace, clock, metrics, self._choice.engine_of)
        self._warming = Warming(
            self._versions, self._appends, self._prefills, self._pace, clock, metrics, lose=self._lose
        )
        self._decoding = Decoding(
            self._versions,
            self._queue,
            self._choice,
            self._prefills,
            self._shadow,
            self._pace,
            clock,
            metrics,
            lose=self._lose,
        )
        self._gauges = Gauges(metrics)
        self._thread = threading.Thread(target=self._run, name="xgr-device", daemon=True)
        self._taken: deque[Item] = deque()
        """Out of the inbox, and not looked at yet: a fault at one of them must not lose the others."""
        self._stop_by: float | None = None
        self._shortened = False
        """Whether it has shortened the switch interval, and not restored it."""
        self._swept_at = float("-inf")

    # Any thread

    def start(self) -> None:
        """Start the thread, and shorten the interpreter's switch interval until `stop`."""
        self._thread.start()
        shorten_switch_interval()
        self._shortened = True

    def stop(self, timeout: float) -> bool:
        """Answer what was submitted, for at most `timeout` seconds, then the rest with `shutting_down`.

        Blocks. False: the engine is still inside a call and the thread was left to it.
        """
        if self._stop_by is None:
            self._stop_by = self._clock.now() + timeout
            self._intake.close(ShuttingDown("the worker is shutting down"), end=True)
        if self._thread.ident is None:
            self._stop_by = self._clock.now()
            self._take_in()
        elif self._shortened:
            self._shortened = False
            self._thread.join(timeout + 1.0)
            restore_switch_interval()
        return not self._thread.is_alive()

    def submit(
        self, request: RecommendRequest, view: HistoryView | None, deadline: float | None, *, partition: int = 0
    ) -> Promise:
        """Answer a request from the user's history as `view` has it. `deadline` is on `Clock.now()`: a request that
        can't be answered by then, as far as step times are known, is refused at once with `over_capacity`, and one
        whose time is up before its decode starts is answered `deadline_exceeded`. Partitions that wait share the
        device equally. Cancel the promise to withdraw the request."""
        rows = request.rows(self._config.beam_width)
        work = Work(request, view, deadline, rows, partition)
        self._intake.submit(work)
        return work.promise

    def want_append(self, view: HistoryView) -> None:
        """Bring the user's prefix up to `view` when there is time; a later view replaces it."""
        self._intake.put([view])

    def want_appends(self, views: Iterable[HistoryView]) -> None:
        """`want_append` for many."""
        self._intake.put(list(views))

    def together(self) -> AbstractContextManager[None]:
        """Hand over what is submitted and wanted inside at the end, at once: to wake the thread for each takes longer
        than all the rest, and has it begin with a batch of one. For one thread at a time, and a few milliseconds."""
        return self._intake.together()

    def call(self, action: Callable[[], T]) -> Future[T]:
        """Run `action` on the device thread: whatever else must not run beside the engine. Batches may be under way."""
        return self._intake.call(action)

    def between_batches(self, action: Callable[[], T]) -> Future[T]:
        """`call`, when no batch is under way: whatever a batch must see before or after itself as a whole. The device
        is idle meanwhile."""

        def run() -> T:
            while self._decoding:
                self._decoding.finish()
            return action()

        return self._intake.call(run)

    def forget(self, user_ids: Iterable[str]) -> None:
        """Drop these users' prefixes and the appends that wait for them."""
        users = list(user_ids)

        def drop() -> None:
            self._appends.remove(users)
            self._shadow.forget(users)
            self._versions.forget(users)
            self._prefills.forget(users)

        self.call(drop)

    def queue_depths(self) -> dict[str, int]:
        """What waits: `decode` (requests) and `append` (users, and whatever the thread has not looked at yet)."""
        return {"decode": len(self._queue), "append": len(self._appends) + self._intake.inbox.qsize()}

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    @property
    def lost(self) -> DeviceLost | None:
        """Why the device can't be used any more."""
        error = self._intake.closed_with
        return error if isinstance(error, DeviceLost) else None

    # Device thread

    def _run(self) -> None:
        set_timer_slack(EXACT_NS)
        while True:
            try:
                if not self._take_in():
                    break
                self._turn()
            except Exception as error:
                logger.exception("a turn of the device thread failed")
                if fault(error) is Fault.DEVICE:
                    self._lose(error)
                    continue
                self._refuse_all(EngineError("the scheduler failed; the worker's log says why"))
                self._appends.clear()
                while self._decoding:
                    self._decoding.finish()
        try:
            self._prefills.drop()
        except Exception:
            logger.exception("a prefill that was under way could not be ended")

    def _take_in(self) -> bool:
        """Move what has come into the queues, waiting if there is nothing to do. False: stopped, and all done."""
        ended = self._stop_by is not None
        while True:
            while self._taken:
                self._take(self._taken.popleft())
            waits = not (ended or self._queue.num_ready or len(self._appends) or self._decoding or self._others)
            try:
                items = self._intake.inbox.get(block=waits, timeout=self._gauges.wait_s if waits else None)
            except Empty:
                if not waits:
                    break
                self._report()
                continue
            if items is None:
                ended = True
                self._appends.clear()
            else:
                self._taken.extend(items)
        if ended and self._stop_by is not None and self._clock.now() >= self._stop_by:
            self._refuse_all(ShuttingDown("the worker shut down before this request's turn came"))
        return bool(len(self._queue) or self._decoding) or not ended

    @property
    def _others(self) -> bool:
        """Whether there is something to do beside what waits in the queues."""
        return self._shadow.waits or self._prefills.under_way

    def _take(self, item: Item) -> None:
        """A fault of one is not another's."""
        try:
            if isinstance(item, Work):
                self._prefills.look_at(item)
                self._queue.mark_ready(item)
            elif isinstance(item, list):
                self._warming.want(item)
                if self._versions.shadow is not None:
                    for view in item:
                        self._shadow.want(view)
            else:
                item()
        except Exception as error:
            logger.exception("the device thread could not take in %s", type(item).__name__)
            if isinstance(item, Work):
                item.fail(answer_to(error))
                if item.waits:
                    self._queue.remove([item])
            elif isinstance(item, list):
                self._metrics.appends_shed.inc(len(item))
            if fault(error) is Fault.DEVICE:
                self._lose(error)

    def _turn(self) -> None:
        """Start the next batch, or finish the oldest one."""
        now = self._clock.now()
        if now >= self._swept_at + SWEEP_S:
            self._swept_at = now
            self._decoding.drop(self._queue.take_gone(now), now)
        self._warming.learn()
        self._prefills.tidy()
        waiting, long = self._prefills.split(self._queue.candidates(CONSIDERED))
        looked = False
        if len(self._decoding) < BATCHES_IN_FLIGHT and not self._holds(waiting):
            may_append = self._warming.may_append
            overloaded, self._intake.overloaded = self._intake.overloaded, False
            works, views = self._choice.next(
                waiting,
                overloaded=overloaded,
                appends=may_append and not self._prefills.overdue(long),
                prefill=long is not None,
                most_ahead=self._prefills.most_ahead,
            )
            looked = may_append and not (works or views)
            if works:
                self._queue.remove(works)
                taken = set(works)
                waiting = [work for work in waiting if work not in taken]
                self._decoding.begin(works)
            elif views:
                self._warming.append(views)
            if self._decoding and self._decoding.oldest_done:  # as of an engine that has computed it already
                self._decoding.finish()
            # Behind each batch too, so that those whose prefix is at hand do not keep the others waiting for ever.
            if not self._warming.under_way and (long is not None or not (works or waiting)):
                beside_s = self._decoding.newest_s if works and self._decoding else 0.0
                self._warming.prefill(long, beside_s)
            if not (works or views or self._decoding or waiting or self._intake.inbox.qsize()):
                self._spare()
        if self._decoding and (len(self._decoding) == BATCHES_IN_FLIGHT or not waiting or self._holds(waiting)):
            self._finish_when_done(waiting, looked)
        elif self._warming.alone:
            time.sleep(POLL_S)
        self._report()

    def _holds(self, waiting: Sequence[Work]) -> bool:
        """Whether the next batch waits: for a prefill that is overdue, or for more requests, while the device is busy
        anyway."""
        if self._warming.alone:
            return True
        if not self._decoding or not waiting:
            return False
        rows = sum(work.rows for work in waiting)
        return hold_s(self._pace.decoding_s(self._clock.now()), self._pace.lead_s, rows, self._pace.budget) > 0

    def _spare(self) -> None:
        """Nothing can be given to the device now: the shadow may have it, for one step, if nobody needs it."""
        if self._warming.under_way:
            time.sleep(POLL_S)
        elif self._shadow.waits:
            self._shadow.step()

    def _finish_when_done(self, waiting: Sequence[Work], looked: bool) -> None:
        """Finish the oldest batch, unless something comes or may go behind it, so that the device is not idle until
        that is prepared; `looked`: none of the appends that wait was picked."""
        while not self._decoding.oldest_done:
            if self._intake.inbox.qsize() or self._may_follow(waiting, looked):
                return
            time.sleep(POLL_S)
        self._decoding.finish()

    def _may_follow(self, waiting: Sequence[Work], looked: bool) -> bool:
        """Whether something may go behind the requests that the device has: others, or appends if none wait."""
        if len(self._decoding) == BATCHES_IN_FLIGHT:
            return False
        if waiting:
            return not self._holds(waiting)
        if looked or not len(self._appends):
            return False
        self._warming.learn()
        return self._warming.may_append

    def _lose(self, error: Exception) -> None:
        """Nothing will work any more: answer everything, now and from now on."""
        lost = answer_to(error)
        failure = lost if isinstance(lost, DeviceLost) else DeviceLost(str(lost))
        first = self._intake.close(failure)
        self._refuse_all(failure)
        self._decoding.refuse_all(failure)
        self._warming.abandon()
        if first:
            try:
                self._on_lost(failure)
            except Exception:
                logger.exception("whoever was to hear of the lost device failed")

    def _refuse_all(self, error: XgrError) -> None:
        for work in self._queue.take_all():
            work.fail(error)

    def _report(self) -> None:
        if self.lost is not None or not self._gauges.due:
            return
        try:
            self._gauges.set(self._versions, self.queue_depths())
        except Exception as error:
            logger.exception("the engines' figures could not be had")
            if fault(error) is Fault.DEVICE:
                self._lose(error)
