"""`bench stream --in-process`: the processor and the device thread, without a broker between them and the load."""

from __future__ import annotations

import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from xgr_stream.cli.benches.arrivals import Schedule
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

    def run(self, plan: Schedule, seconds: float) -> dict[str, object]:
        """Feed the plan's arrivals by the clock; the row of what came of them."""
        self._engine.clear()
        self._consumed.clear()
        shed = self._counted("xgr_appends_shed_total")
        outcomes = Outcomes(len(plan.requests_at), self._timeout_s)
        pending: dict[str, float] = {}
        due_events, due_requests = plan.events_at.tolist(), plan.requests_at.tolist()
        sent_events = sent_requests = 0
        began, cpu = time.monotonic(), time.process_time()
        give_up = began + seconds + self._timeout_s + LAST_WAIT_S
        while sent_events < len(due_events) or sent_requests < len(due_requests) or pending:
            now = time.monotonic()
            if now > give_up:
                break
            records: list[Record] = []
            while sent_events < len(due_events) and due_events[sent_events] <= now - began and len(records) < SLICE:
                user_id = f"user-{plan.event_users[sent_events]}"
                self._engine.event(user_id, self._next_number(user_id), began + due_events[sent_events])
                item = self._items[(sent_events * 7919) % len(self._items)]
                records.append(self._record(self._config.topics.events, user_id, {"v": 1, "item_id": item}))
                sent_events += 1
            while (
                sent_requests < len(due_requests)
                and due_requests[sent_requests] <= now - began
                and len(records) < SLICE
            ):
                due = began + due_requests[sent_requests]
                records.append(self._request(plan, sent_requests, due, pending))
                sent_requests += 1
            self._processor.process(records)
            self._engine.collect(outcomes.warm_s)
            self._publish(pending, outcomes)
            if len(records) < SLICE:
                self._awake.wait(NAP_S)
            self._awake.clear()
        took = time.monotonic() - began
        self._engine.collect(outcomes.warm_s)
        return {
            "requests_per_s": len(due_requests) / seconds,
            "events_per_s": len(due_events) / seconds,
            **outcomes.row(min(took, max(seconds, 1e-9))),
            "appends_shed": self._counted("xgr_appends_shed_total") - shed,
            "cpu": (time.process_time() - cpu) / took,
        }

    def _next_number(self, user_id: str) -> int:
        if user_id not in self._numbers:
            view = self._history.view(user_id)
            self._numbers[user_id] = 0 if view is None else view.event_count
        self._numbers[user_id] += 1
        return self._numbers[user_id] - 1

    def _request(self, plan: Schedule, number: int, due: float, pending: dict[str, float]) -> Record:
        user_id = f"user-{plan.request_users[number]}"
        if self._cold_users and plan.cold[number]:
            user_id = self._cold_users[number % len(self._cold_users)]
            self.worker.forget([user_id])
        self._asked += 1
        request_id = str(self._asked)
        pending[request_id] = due
        self._consumed[request_id] = time.monotonic()
        fields = {"v": 1, "request_id": request_id, "k": self._k, "beam_width": self._beam}
        return self._record(self._config.topics.requests, user_id, fields, due=due)

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
