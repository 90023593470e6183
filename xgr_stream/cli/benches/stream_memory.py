"""`bench stream --in-process`: the processor and the device thread, without a broker between them and the load."""

from __future__ import annotations

import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

from xgr_stream.cli.benches.arrivals import Loop, Schedule
from xgr_stream.cli.benches.latencies import Outcomes
from xgr_stream.config import EngineConfig, StreamConfig
from xgr_stream.history import HistoryStore, HistoryView
from xgr_stream.metrics import Metrics
from xgr_stream.scheduler.clock import SystemClock
from xgr_stream.scheduler.ports import WarmReport
from xgr_stream.scheduler.worker import DeviceWorker
from xgr_stream.stream import codec
from xgr_stream.stream.processor import Processor
from xgr_stream.stream.records import Record
from xgr_stream.types import UserEvent

SLICE = 25
"""Records that are processed before anything else is looked at."""
NAP_S = 2e-4
LAST_WAIT_S = 2.0
"""Beyond the timeout, for the answers that still come."""
PATIENCE_S = 600.0
MAX_BYTES = 1 << 20


class WarmedEngine:
    """The engine, and when the events of each user became part of their prefix."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self._reports: deque[tuple[WarmReport, Sequence[HistoryView]]] = deque()
        self._events: defaultdict[str, deque[tuple[int, float]]] = defaultdict(deque)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def warm(self, views: Sequence[HistoryView]) -> WarmReport:
        report: WarmReport = self._engine.warm(views)
        self._reports.append((report, views))
        return report

    def event(self, user_id: str, number: int, due: float) -> None:
        """The user's event of this number was due then."""
        self._events[user_id].append((number, due))

    def collect(self, warm_s: list[float]) -> None:
        """Add the times of the events that are part of a prefix since."""
        while self._reports and self._reports[0][0].seconds is not None:
            now = time.monotonic()
            for view in self._reports.popleft()[1]:
                waiting = self._events[view.user_id]
                while waiting and waiting[0][0] < view.event_count:
                    warm_s.append(now - waiting.popleft()[1])

    def answered(self, user_id: str, event_count: int) -> None:
        """A request brought the prefix up: its events were asked for before they were warm, and don't count."""
        waiting = self._events[user_id]
        while waiting and waiting[0][0] < event_count:
            waiting.popleft()

    def clear(self) -> None:
        self._reports.clear()
        self._events.clear()


class Arrival(NamedTuple):
    """An event or a request."""

    user: int
    cold: bool
    due: float
    """On the monotonic clock."""


class ByTheClock:
    """What is due of a schedule."""

    def __init__(self, plan: Schedule, began: float) -> None:
        self.events = self.requests = 0
        """Handed out so far."""
        self._plan = plan
        self._events_at = (plan.events_at + began).tolist()
        self._requests_at = (plan.requests_at + began).tolist()

    @property
    def ended(self) -> bool:
        return self.events == len(self._events_at) and self.requests == len(self._requests_at)

    def event(self, now: float) -> Arrival | None:
        """The next one that is due."""
        number = self.events
        if number == len(self._events_at) or self._events_at[number] > now:
            return None
        self.events += 1
        return Arrival(int(self._plan.event_users[number]), False, self._events_at[number])

    def request(self, now: float, _: int) -> Arrival | None:
        """The next one that is due."""
        number = self.requests
        if number == len(self._requests_at) or self._requests_at[number] > now:
            return None
        self.requests += 1
        plan = self._plan
        return Arrival(int(plan.request_users[number]), bool(plan.cold[number]), self._requests_at[number])


class OneForAnother:
    """The next request of a loop for each that was answered, and events as requests are sent, until `end`."""

    def __init__(self, plan: Loop, end: float) -> None:
        self.events = self.requests = 0
        """Handed out so far."""
        self.ended = False
        self._plan = plan
        self._end = end

    def event(self, now: float) -> Arrival | None:
        """The next one of the requests that were sent."""
        plan, number = self._plan, self.events
        if number >= self.requests * plan.events_per_request:
            return None
        self.events += 1
        return Arrival(int(plan.event_users[number % len(plan.event_users)]), False, now)

    def request(self, now: float, under_way: int) -> Arrival | None:
        """The next one, if fewer than it may be are under way."""
        self.ended = now >= self._end
        if self.ended or under_way >= self._plan.concurrency:
            return None
        plan, number = self._plan, self.requests % len(self._plan.request_users)
        self.requests += 1
        return Arrival(int(plan.request_users[number]), bool(plan.cold[number]), now)


class InProcess:
    """A worker whose broker is this object. A context manager."""

    def __init__(
        self, engine: Any, engine_config: EngineConfig, *, timeout_ms: int, beam: int, k: int, cold_users: Sequence[str]
    ) -> None:
        """Users `user-<n>` take part in the mix; `cold_users` do nothing but ask, each time without a prefix."""
        self._engine = WarmedEngine(engine)
        self._history: HistoryStore = engine.history
        self._config = StreamConfig(partitioner="any", default_timeout_ms=timeout_ms, max_pending_requests=65_536)
        self._timeout_s = timeout_ms / 1e3
        clock, self._metrics = SystemClock(), Metrics()
        self.worker = DeviceWorker(self._engine, engine_config, clock, self._metrics)
        self._processor = Processor(
            self.worker,
            self._history,
            self._config,
            knows_item=engine.knows_item,
            clock=clock,
            metrics=self._metrics,
        )
        self._awake = threading.Event()
        self._processor.on_wake(self._awake.set)
        self._processor.assign({0}, 1)
        self._processor.restored(0)
        self._k, self._beam = k, beam
        self._cold_users = cold_users
        self._offsets = {self._config.topics.events: 0, self._config.topics.requests: 0}
        self._asked = 0
        self._numbers: dict[str, int] = {}
        self._consumed: dict[str, float] = {}
        """When each request was."""
        self._items = [f"item-{number}" for number in range(1_000)]
        names = self._history.item_names
        if len(names):
            self._items = [names[number] for number in range(min(len(names), 1_000))]

    def __enter__(self) -> InProcess:
        self.worker.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._processor.revoke({0})
        self.worker.stop(timeout=10.0)

    def warm(self, views: Sequence[HistoryView], size: int) -> None:
        """Prefill these users, so many at a time, on the device thread."""
        for first in range(0, len(views), size):
            self.worker.call(partial(self._warm, views[first : first + size])).result(PATIENCE_S)

    def _warm(self, views: Sequence[HistoryView]) -> None:
        self._engine.warm(views)

    def run(self, plan: Schedule | Loop, seconds: float) -> dict[str, object]:
        """Feed the plan's arrivals, for so many seconds; the row of what came of them."""
        self._engine.clear()
        self._consumed.clear()
        shed = self._counted("xgr_appends_shed_total")
        outcomes = Outcomes(self._timeout_s)
        pending: dict[str, float] = {}
        began, cpu = time.monotonic(), time.process_time()
        feed = ByTheClock(plan, began) if isinstance(plan, Schedule) else OneForAnother(plan, began + seconds)
        give_up = began + seconds + self._timeout_s + LAST_WAIT_S
        while not feed.ended or pending:
            now = time.monotonic()
            if now > give_up:
                break
            records: list[Record] = []
            while len(records) < SLICE and (event := feed.event(now)) is not None:
                records.append(self._event(event, feed.events))
            while len(records) < SLICE and (request := feed.request(now, len(pending))) is not None:
                records.append(self._request(request, feed.requests, pending))
            self._processor.process(records)
            self._engine.collect(outcomes.warm_s)
            self._publish(pending, outcomes)
            if len(records) < SLICE:
                self._awake.wait(NAP_S)
            self._awake.clear()
        took = time.monotonic() - began
        self._engine.collect(outcomes.warm_s)
        stats = self.worker.call(self._engine.stats).result(PATIENCE_S)
        span = seconds if isinstance(plan, Schedule) else took
        return {
            "requests_per_s": feed.requests / span,
            "events_per_s": feed.events / span,
            **outcomes.row(feed.requests, min(took, max(span, 1e-9))),
            "users_warm": stats.users_warm,
            "prefix_gib": stats.bytes_used / (1 << 30),
            "appends_shed": self._counted("xgr_appends_shed_total") - shed,
            "cpu": (time.process_time() - cpu) / took,
        }

    def _next_number(self, user_id: str) -> int:
        if user_id not in self._numbers:
            view = self._history.view(user_id)
            self._numbers[user_id] = 0 if view is None else view.event_count
        self._numbers[user_id] += 1
        return self._numbers[user_id] - 1

    def _event(self, event: Arrival, number: int) -> Record:
        user_id = f"user-{event.user}"
        self._engine.event(user_id, self._next_number(user_id), event.due)
        item = self._items[(number * 7919) % len(self._items)]
        return self._record(self._config.topics.events, user_id, {"v": 1, "item_id": item})

    def _request(self, request: Arrival, number: int, pending: dict[str, float]) -> Record:
        user_id = f"user-{request.user}"
        if self._cold_users and request.cold:
            user_id = self._cold_users[number % len(self._cold_users)]
            self.worker.forget([user_id])
        self._asked += 1
        request_id = str(self._asked)
        pending[request_id] = request.due
        self._consumed[request_id] = time.monotonic()
        fields = {"v": 1, "request_id": request_id, "k": self._k, "beam_width": self._beam}
        return self._record(self._config.topics.requests, user_id, fields, due=request.due)

    def _record(self, topic: str, user_id: str, message: dict[str, Any], *, due: float | None = None) -> Record:
        offset = self._offsets[topic]
        self._offsets[topic] = offset + 1
        age_ms = 0.0 if due is None else (time.monotonic() - due) * 1e3
        value = codec.encode(message, "msgpack")
        return Record(topic, 0, offset, user_id.encode(), value, round(time.time() * 1e3 - age_ms))

    def _publish(self, pending: dict[str, float], outcomes: Outcomes) -> None:
        """Be the broker: everything is durable at once, and a response is consumed when it is written."""
        while outputs := self._processor.poll():
            now = time.monotonic()
            for output in outputs:
                for produce in output.produces:
                    if produce.topic == self._config.topics.responses and produce.value is not None:
                        response = codec.decode(produce.value, MAX_BYTES)
                        due = pending.pop(response["request_id"], None)
                        if due is not None:
                            outcomes.note(response, now - due, now - self._consumed.pop(response["request_id"]))
                            self._engine.answered(response["user_id"], response["event_count"])
                self._processor.acknowledged(output)

    def _counted(self, name: str) -> float:
        return self._metrics.registry.get_sample_value(name) or 0.0


def preload(history: HistoryStore, user_ids: Iterable[str], events: int, item: Callable[[int], str]) -> None:
    """Give each of these users so many events that came from no topic."""
    for user_id in user_ids:
        for number in range(events):
            history.apply(UserEvent(user_id, item(number)), partition=0)
