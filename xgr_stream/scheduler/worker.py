"""The one thread that owns the device."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from itertools import islice
from queue import Empty, SimpleQueue
from typing import NamedTuple

from xgr_stream.config import EngineConfig
from xgr_stream.errors import DeadlineExceeded, EngineError, ShuttingDown, XgrError
from xgr_stream.history import HistoryView
from xgr_stream.metrics import Metrics
from xgr_stream.scheduler.clock import Clock
from xgr_stream.scheduler.policy import Budget, WaitingAppend, WaitingRequest, choose
from xgr_stream.scheduler.ports import DeviceEngine, PendingAnswers, WarmReport
from xgr_stream.types import RecommendRequest, RecommendResponse

logger = logging.getLogger(__name__)

SWITCH_INTERVAL_S = 5e-5
"""How long a waiting thread lets the holder of the GIL go on. With Python's 5 ms and a saturated event loop the device
thread was woken 0.1 to 4 s late; with this, P99 0.5 ms."""
APPEND_PIECE_MS = {"cpu": 20.0, "cuda": 1.3}
"""How long one batch of appends should take, by kind of device."""
BATCHES_IN_FLIGHT = 2
"""The device works on one while the next is prepared, and is queued behind it without a gap."""
POLL_S = 5e-5
"""How often the device thread looks for new requests while it waits for a batch."""
CONSIDERED = 256
"""Entries of each queue that one turn looks at."""
FULL = 0.9
"""Share of the cache's budget above which users without a prefix are no longer prefilled ahead."""


class _Work:
    """A request on its way to the device."""

    __slots__ = ("deadline", "future", "request", "rows", "submitted_at", "view")

    def __init__(
        self, request: RecommendRequest, view: HistoryView | None, deadline: float | None, rows: int, now: float
    ) -> None:
        self.request = request
        self.view = view
        self.deadline = deadline
        self.rows = rows
        self.submitted_at = now
        self.future: Future[RecommendResponse] = Future()

    def fail(self, error: XgrError) -> None:
        if self.future.set_running_or_notify_cancel():
            self.future.set_result(RecommendResponse.failure(self.request.request_id, self.request.user_id, error))


class _Next(NamedTuple):
    """What is started next."""

    requests: Sequence[int]
    appends: Sequence[str]


class DeviceWorker:
    """Runs the engine on a thread of its own. Every future it gives out is resolved, with a response.

    `submit`, `want_append`, `call` and `forget` may be called on any thread and never block. Futures are resolved on
    the device thread: their callbacks must be short and must not raise.
    """

    def __init__(self, engine: DeviceEngine, config: EngineConfig, clock: Clock, metrics: Metrics) -> None:
        self._engine = engine
        self._config = config
        self._clock = clock
        self._metrics = metrics
        self._inbox: SimpleQueue[_Work | HistoryView | Callable[[], None] | None] = SimpleQueue()
        self._requests: deque[_Work] = deque()
        self._appends: dict[str, HistoryView] = {}
        self._decoding: deque[tuple[list[_Work], PendingAnswers]] = deque()
        self._warming: WarmReport | None = None
        piece_ms = config.append_piece_ms or APPEND_PIECE_MS[config.device.partition(":")[0]]
        self._piece_s = piece_ms / 1e3
        self._thread = threading.Thread(target=self._run, name="xgr-device", daemon=True)
        self._closing = threading.Lock()
        self._stopping = False
        self._stop_by: float | None = None
        self._switch_interval: float | None = None
        self._seconds_per_token = 0.0
        self._counted = {"beams_dead": 0, "invalid_items": 0}

    # Any thread

    def start(self) -> None:
        """Start the thread, and shorten the interpreter's switch interval until `stop`."""
        self._switch_interval = sys.getswitchinterval()
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        self._thread.start()

    def stop(self, timeout: float) -> bool:
        """Answer what was submitted, for at most `timeout` seconds, then the rest with `shutting_down`.

        Blocks. False: the engine is still inside a call and the thread was left to it.
        """
        with self._closing:
            if not self._stopping:
                self._stopping = True
                self._stop_by = self._clock.now() + timeout
                self._inbox.put(None)
        if self._thread.ident is None:
            self._stop_by = self._clock.now()
            self._take_in()
        elif self._switch_interval is not None:
            self._thread.join(timeout + 1.0)
            sys.setswitchinterval(self._switch_interval)
            self._switch_interval = None
        return not self._thread.is_alive()

    def submit(
        self, request: RecommendRequest, view: HistoryView | None, deadline: float | None
    ) -> Future[RecommendResponse]:
        """Answer a request from the user's history as `view` has it. `deadline` is on `Clock.now()`: a request whose
        time is up before its decode starts is answered `deadline_exceeded`. Cancel the future to withdraw it."""
        rows = request.beam_width or max(request.k, self._config.beam_width)
        work = _Work(request, view, deadline, rows, self._clock.now())
        if not self._put(work):
            work.fail(ShuttingDown("the worker is shutting down"))
        return work.future

    def want_append(self, view: HistoryView) -> None:
        """Bring the user's prefix up to `view` when there is time; a later view replaces it."""
        self._put(view)

    def call(self, action: Callable[[], None]) -> Future[None]:
        """Run `action` on the device thread between two batches: whatever else must not run beside the engine."""
        future: Future[None] = Future()

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                action()
                future.set_result(None)
            except Exception as error:
                logger.exception("a call on the device thread failed")
                future.set_exception(error)

        if not self._put(run):
            future.set_exception(ShuttingDown("the worker is shutting down"))
        return future

    def forget(self, user_ids: Iterable[str]) -> None:
        """Drop these users' prefixes and the appends that wait for them."""
        users = list(user_ids)

        def drop() -> None:
            for user_id in users:
                self._appends.pop(user_id, None)
            self._engine.forget(users)

        self.call(drop)

    def queue_depths(self) -> dict[str, int]:
        """What waits: `decode` (requests, and whatever the thread has not looked at yet) and `append` (users)."""
        return {"decode": len(self._requests) + self._inbox.qsize(), "append": len(self._appends)}

    def _put(self, item: _Work | HistoryView | Callable[[], None]) -> bool:
        """The lock makes sure that nothing comes behind the end mark."""
        with self._closing:
            if self._stopping:
                return False
            self._inbox.put(item)
            return True

    # Device thread

    def _run(self) -> None:
        while self._take_in():
            try:
                self._turn()
            except Exception:
                logger.exception("a turn of the device thread failed")
                self._refuse(self._requests, EngineError("the scheduler failed; the worker's log says why"))
                self._appends.clear()
                while self._decoding:
                    self._finish()

    def _take_in(self) -> bool:
        """Move what has come into the queues, waiting if there is nothing to do. False: stopped, and all done."""
        ended = self._stop_by is not None
        while True:
            try:
                item = self._inbox.get(block=not (ended or self._requests or self._appends or self._decoding))
            except Empty:
                break
            if isinstance(item, _Work):
                self._requests.append(item)
            elif isinstance(item, HistoryView):
                self._appends[item.user_id] = item
            elif item is None:
                ended = True
                self._appends.clear()
            else:
                item()
        if ended and self._stop_by is not None and self._clock.now() >= self._stop_by:
            self._refuse(self._requests, ShuttingDown("the worker shut down before this request's turn came"))
        return bool(self._requests or self._decoding) or not ended

    def _turn(self) -> None:
        """Start the next batch, or finish the oldest one."""
        self._drop_expired()
        self._learn()
        if len(self._decoding) < BATCHES_IN_FLIGHT:
            batch = self._choose()
            if batch.requests:
                self._decode([self._requests.popleft() for _ in batch.requests])
            elif batch.appends:
                self._append([self._appends.pop(user_id) for user_id in batch.appends])
        if self._decoding and (len(self._decoding) == BATCHES_IN_FLIGHT or not self._requests):
            self._finish_when_done()
        self._report()

    def _choose(self) -> _Next:
        """What the policy picks: how many requests, or which users' appends."""
        appends: list[HistoryView] = []
        if not self._requests and self._warming is None:
            appends = list(islice(self._appends.values(), CONSIDERED))
        batch = choose(
            map(self._waiting, islice(self._requests, CONSIDERED)),
            [
                WaitingAppend(self._engine.pending_tokens(view), self._engine.is_resident(view.user_id))
                for view in appends
            ],
            self._budget(),
        )
        for i in batch.lazy:
            del self._appends[appends[i].user_id]
        return _Next(batch.requests, [appends[i].user_id for i in batch.appends])

    def _finish_when_done(self) -> None:
        """Finish the oldest batch, unless something comes that can be started meanwhile."""
        _, pending = self._decoding[0]
        while not pending.done():
            if self._inbox.qsize():
                return
            time.sleep(POLL_S)
        self._finish()

    def _drop_expired(self) -> None:
        """Answer the requests whose time is up, and let go of the withdrawn ones."""
        now = self._clock.now()
        waiting: deque[_Work] = deque()
        for work in self._requests:
            if work.deadline is not None and work.deadline <= now:
                late_ms = (now - work.submitted_at) * 1000
                work.fail(DeadlineExceeded(f"the deadline passed after {late_ms:.0f} ms in the decode queue"))
            elif not work.future.cancelled():
                waiting.append(work)
        self._requests = waiting

    def _waiting(self, work: _Work) -> WaitingRequest:
        return WaitingRequest(work.rows, 0 if work.view is None else self._engine.pending_tokens(work.view))

    def _budget(self) -> Budget:
        config, stats = self._config, self._engine.stats()
        piece = config.max_batch_tokens
        if self._seconds_per_token:
            piece = min(piece, int(self._piece_s / self._seconds_per_token))
        room = stats.bytes_used < FULL * stats.bytes_budget
        return Budget(config.max_batch_rows, config.max_batch_tokens, max(piece, 1), room)

    def _decode(self, works: Sequence[_Work]) -> None:
        batch = [work for work in works if work.future.set_running_or_notify_cancel()]
        if not batch:
            return
        try:
            self._decoding.append((batch, self._engine.begin([(work.request, work.view) for work in batch])))
        except Exception as error:  # noqa: BLE001, it becomes the batch's answer
            self._fail(batch, error)

    def _finish(self) -> None:
        batch, pending = self._decoding.popleft()
        try:
            responses = pending.finish()
            if len(responses) != len(batch):
                raise EngineError(f"the engine gave {len(responses)} responses to {len(batch)} requests")
        except Exception as error:  # noqa: BLE001
            self._fail(batch, error)
            return
        for work, response in zip(batch, responses, strict=True):
            work.future.set_result(response)

    def _fail(self, batch: Sequence[_Work], error: Exception) -> None:
        logger.error("the engine failed on a batch of %d requests", len(batch), exc_info=error)
        failure = EngineError(f"the engine failed: {type(error).__name__}")
        for work in batch:
            work.future.set_result(RecommendResponse.failure(work.request.request_id, work.request.user_id, failure))

    def _append(self, views: Sequence[HistoryView]) -> None:
        try:
            report = self._engine.warm(views)
        except Exception:
            logger.exception("the engine failed to warm %d users; their next request will", len(views))
            return
        self._metrics.appends.inc(report.users)
        self._metrics.append_tokens.inc(report.tokens)
        self._warming = report

    def _learn(self) -> None:
        """Take note of how long the last appends took, once they are done. Others are not started before: a request
        that comes waits for one batch of them."""
        if self._warming is None or self._warming.seconds is None:
            return
        if self._warming.tokens:
            latest = self._warming.seconds / self._warming.tokens
            self._seconds_per_token += 0.2 * (latest - self._seconds_per_token)
        self._warming = None

    def _refuse(self, works: deque[_Work], error: XgrError) -> None:
        while works:
            works.popleft().fail(error)

    def _report(self) -> None:
        metrics, stats = self._metrics, self._engine.stats()
        metrics.users_warm.set(stats.users_warm)
        metrics.cache_bytes.labels("used").set(stats.bytes_used)
        metrics.cache_bytes.labels("budget").set(stats.bytes_budget)
        for name, counter in (("beams_dead", metrics.beams_dead), ("invalid_items", metrics.invalid_items)):
            total: int = getattr(stats, name)
            counter.inc(total - self._counted[name])
            self._counted[name] = total
        for queue, depth in self.queue_depths().items():
            metrics.queue_depth.labels(queue).set(depth)
