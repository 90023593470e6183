"""Requests and events on their way to a `DeviceWorker`: by the clock, or as fast as they are worked off."""

from __future__ import annotations

import gc
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from time import perf_counter
from types import TracebackType
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from xgr_stream.cli.benches.samples import collect_as_a_worker, in_a_row_ms, measure, synchronize
from xgr_stream.cli.benches.subject import Subject, check_answers, requests_of
from xgr_stream.errors import EngineError
from xgr_stream.metrics import Metrics
from xgr_stream.scheduler.clock import SystemClock
from xgr_stream.scheduler.promise import Promise
from xgr_stream.scheduler.worker import DeviceWorker
from xgr_stream.types import CacheState, RecommendResponse

CALIBRATION = 12
"""Timed appends and requests that give the rates."""
LEAST_REQUESTS = 20
UNTIMED_ROUNDS, CALM = 5, 5
"""Rounds before those that are timed: until no request takes longer than so many alone, as while a kernel is compiled,
but not more than so many rounds."""
NAP_S = 1e-4
"""The driver looks at its clock this often."""
PATIENCE_S = 120.0


@dataclass(frozen=True, slots=True)
class Load:
    """What arrives; the options of `bench overlap`."""

    context: int
    beam: int
    askers: int
    appenders: int
    append_batch: int
    seconds: float
    rounds: int
    load: float
    append_load: float


@dataclass(frozen=True, slots=True)
class Rates:
    """What one kind of work does by itself, and what arrives therefore."""

    peak_events_per_s: float
    """Of whole append batches in a row, as `bench appends` measures them."""
    request_ms: float
    """Of one warm request."""
    events_per_s: float
    """That arrive in an open loop, and:"""
    requests_per_s: float


def measure_rates(subject: Subject, load: Load) -> Rates:
    """They are measured on an engine that is let go."""
    users = subject.users(load.append_batch, load.context, after=2 * CALIBRATION)
    engine = subject.engine(users, beam=load.beam)
    engine.warm(users.steps[0])
    views = iter(users.steps[1:])

    def append() -> None:
        engine.warm(next(views))

    in_a_row_ms(append, subject.device, repeats=CALIBRATION)  # not timed: kernels are compiled, graphs captured
    append_ms = in_a_row_ms(append, subject.device, repeats=CALIBRATION)
    latest = [users.steps[-1][0]]
    engine.warm(latest)
    request = requests_of(latest, beam=load.beam, k=min(10, load.beam))
    answer = measure(lambda: check_answers(engine.answer(request)), subject.device, repeats=CALIBRATION)
    peak_events_per_s = load.append_batch / append_ms * 1e3
    return Rates(
        peak_events_per_s=peak_events_per_s,
        request_ms=answer.median,
        events_per_s=load.append_load * peak_events_per_s,
        requests_per_s=load.load / answer.median * 1e3,
    )


class Loop(NamedTuple):
    """What a loop has, and whether its appends are on a stream of their own."""

    name: str
    requests: bool = True
    events: bool = True
    streams: bool = True


@dataclass(slots=True)
class _Passed:
    """What a loop did in all rounds so far."""

    loop: Loop
    requests: int = 0
    events: int = 0
    seconds: float = 0.0
    waits_ms: list[float] = field(default_factory=list)
    """Of each request, in an open loop."""
    behind: int = 0
    """Most users, at the end of a round of an open loop."""
    appended: NDArray[np.float64] = field(default_factory=lambda: np.zeros(3))
    """Tokens, users and batches."""

    def row(self, event_tokens: int) -> dict[str, object]:
        """Of the table."""
        row: dict[str, object] = {"run": self.loop.name, "requests": self.requests, "events": self.events}
        row["seconds"] = self.seconds
        if self.waits_ms:
            row["p50_ms"], row["p99_ms"] = (float(p) for p in np.percentile(self.waits_ms, (50, 99)))
        if self.loop.events:
            tokens, users, batches = self.appended.tolist()
            row["events_per_s"] = round(tokens / event_tokens / self.seconds)
            row["users_a_batch"] = users / max(1, batches)
        if self.waits_ms and self.loop.events:
            row["behind"] = self.behind
        return row


class Traffic:
    """A running worker with users who ask, always warm, and users whose events are appended.

    Events are views that were taken beforehand, so that every run starts from the same prefixes. A context manager.
    """

    def __init__(self, subject: Subject, load: Load, rates: Rates) -> None:
        self._subject = subject
        self._load = load
        self._rates = rates
        # Of a closed loop: requests and events that take about half a round of an open one each.
        self._num_requests = max(LEAST_REQUESTS, round(load.seconds / 2 / rates.request_ms * 1e3))
        self._num_events = round(self._num_requests * rates.request_ms / 1e3 * rates.peak_events_per_s)
        most = max(self._num_events, rates.events_per_s * load.seconds)
        steps = max(math.ceil(most / load.appenders) + 1, load.appenders.bit_length() + 1)
        self._users = subject.users(load.askers + load.appenders, load.context, after=steps)
        self._askers = self._users.steps[0][: load.askers]
        self._engine = subject.engine(self._users, beam=load.beam, rows=load.askers * load.beam)
        self._metrics = Metrics()
        self._worker = DeviceWorker(self._engine, self._engine.config, SystemClock(), self._metrics)
        self._rewound = False
        """Whether all prefixes are as they are at the first view."""

    def __enter__(self) -> Traffic:
        for streams in (False, True):
            self._engine.use_streams(streams)
            self._engine.prepare()
        collect_as_a_worker()
        self._worker.start()
        self._rewind()
        for streams in (False, True):
            self._use_streams(streams)
            self._warm_up()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._worker.stop(timeout=10.0)
        gc.unfreeze()  # the engine's memory is for what is measured next

    def _warm_up(self) -> None:
        self._on_device(self._run_every_size)
        self._rewind()
        self._run_closed(requests=LEAST_REQUESTS, events=4 * self._load.appenders)
        for number in range(UNTIMED_ROUNDS):
            waits_ms: list[float] = []
            self._rewind()
            self._round(number, waits_ms, appending=True)
            if max(waits_ms) < CALM * self._rates.request_ms:
                return

    def open_loops(self, loops: Sequence[Loop]) -> list[dict[str, object]]:
        """Requests, and the events of those loops that have them, that arrive by the clock; all rounds together."""
        passed = {loop: _Passed(loop) for loop in loops}
        for number, loop in self._in_turn(loops):
            so_far, before = passed[loop], self._appended()
            seconds, events = self._round(number, so_far.waits_ms, appending=loop.events)
            so_far.appended += self._appended() - before
            so_far.seconds += seconds
            so_far.events += events
            # The last request's time is added behind its result; and all views have been looked at then.
            self._on_device(lambda: None)
            so_far.requests = len(so_far.waits_ms)
            so_far.behind = max(so_far.behind, self._worker.queue_depths()["append"])
        return [each.row(self._users.event_tokens) for each in passed.values()]

    def _round(self, number: int, waits_ms: list[float], appending: bool) -> tuple[float, int]:
        """One open loop from the first views, in which requests arrive at the times that go with its number; adds each
        request's time, and returns (seconds, events sent)."""
        seconds = self._load.seconds
        count = max(1, round(seconds * self._rates.requests_per_s))
        random = np.random.default_rng((self._subject.setting.seed, 2, number))
        requests_due = np.sort(random.uniform(0, seconds, count)).tolist()
        events_due = np.arange(0, seconds, 1 / self._rates.events_per_s).tolist() if appending else []
        futures: list[Promise] = []
        sent = 0
        begin = perf_counter()

        def answered(due: float) -> Callable[[], None]:
            return lambda: waits_ms.append((perf_counter() - begin - due) * 1e3)

        while len(futures) < count or sent < len(events_due):
            now = perf_counter() - begin
            while len(futures) < count and requests_due[len(futures)] <= now:
                futures.append(self._ask(len(futures), answered(requests_due[len(futures)])))
            while sent < len(events_due) and events_due[sent] <= now:
                self._send(sent)
                sent += 1
            time.sleep(NAP_S)
        took = perf_counter() - begin
        _check_warm([future.result(PATIENCE_S) for future in futures])
        return took, sent

    def closed_loops(self, loops: Sequence[Loop]) -> list[dict[str, object]]:
        """Runs of the same requests, the same events or both, as fast as they are worked off; all rounds together."""
        passed = {loop: _Passed(loop) for loop in loops}
        for _, loop in self._in_turn(loops):
            so_far, before = passed[loop], self._appended()
            requests, events = loop.requests * self._num_requests, loop.events * self._num_events
            so_far.seconds += self._run_closed(requests=requests, events=events)
            so_far.requests += requests
            so_far.events += events
            so_far.appended += self._appended() - before
        return [each.row(self._users.event_tokens) for each in passed.values()]

    def _in_turn(self, loops: Sequence[Loop]) -> Iterator[tuple[int, Loop]]:
        """Every loop in every round, since one by itself says little, and there and back, since what comes before it
        leaves a card warm; each from the first views. With the round's number."""
        for number in range(self._load.rounds):
            for loop in loops[:: (-1) ** number]:
                self._use_streams(loop.streams)
                self._rewind()
                yield number, loop

    def _appended(self) -> NDArray[np.float64]:
        """Tokens, users and batches so far."""
        names = ("append_tokens", "appends", "append_batches")
        registry = self._metrics.registry
        return np.array([registry.get_sample_value(f"xgr_{name}_total") or 0.0 for name in names])

    def _use_streams(self, streams: bool) -> None:
        self._on_device(partial(self._engine.use_streams, streams))

    def _run_closed(self, *, requests: int, events: int) -> float:
        """One request after the other, and events such that appends always wait, until all is done: the seconds. Both
        in step, since once one kind has come to its end the rest is no mixture."""
        woken = threading.Event()
        answered: list[RecommendResponse] = []
        asked: Promise | None = None
        sent = 0
        before = self._appended()
        begin = perf_counter()
        while len(answered) < requests or sent < events:
            woken.clear()
            if asked is not None and asked.done():
                answered.append(asked.result())
                asked = None
            depths = self._worker.queue_depths()
            taken = sent - depths["append"]
            if asked is None and len(answered) < requests and len(answered) * events <= taken * requests:
                asked = self._ask(len(answered), woken.set)
            sent = self._keep_waiting(sent, events, sum(depths.values()))
            woken.wait(NAP_S)
        self._worker.call(lambda: None).result(PATIENCE_S)  # behind all that was sent, so that the queue has it
        while self._worker.queue_depths()["append"]:
            time.sleep(NAP_S)
        self._on_device(lambda: None)
        took = perf_counter() - begin
        _check_warm(answered)
        appended = int((self._appended() - before)[0])
        if appended != events * self._users.event_tokens:
            raise EngineError(f"{events} events must be appended, not {appended} tokens of them")
        return took

    def _keep_waiting(self, sent: int, events: int, waiting: int) -> int:
        """Send more events if little waits. At most one of each user waits, since later ones would be appended with it:
        appends are taken in order, so those of the users who are next have been."""
        half = max(1, self._load.appenders // 2)
        if waiting > half:
            return sent
        upto = min(events, sent + half)
        for number in range(sent, upto):
            self._send(number)
        return upto

    def _ask(self, number: int, done: Callable[[], object]) -> Promise:
        view = self._askers[number % len(self._askers)]
        ((request, _),) = requests_of([view], beam=self._load.beam, k=min(10, self._load.beam))
        future = self._worker.submit(request, view, None)
        future.add_done_callback(lambda _: done())
        return future

    def _send(self, number: int) -> None:
        """The run's event of this number, users in turn."""
        step, user = divmod(number, self._load.appenders)
        self._rewound = False
        self._worker.want_append(self._users.steps[step + 1][self._load.askers + user])

    def _rewind(self) -> None:
        """All prefixes as they are at the first view, and no append waiting."""
        if self._rewound:
            return
        self._rewound = True
        first = self._users.steps[0]
        self._worker.forget(view.user_id for view in first)
        self._on_device(lambda: self._engine.warm(first))

    # On the device thread

    def _on_device(self, action: Callable[[], object]) -> None:
        """Run this between two batches and wait until the device is idle."""

        def run() -> None:
            action()
            synchronize(self._subject.device)

        self._worker.call(run).result(PATIENCE_S)

    def _run_every_size(self) -> None:
        """Batches of all sizes that may occur, so that their graphs are captured before anything is timed."""
        self._rewound = False
        for size in range(1, len(self._askers) + 1):
            self._engine.answer(requests_of(self._askers[:size], beam=self._load.beam, k=1))
        for step in range(1, self._load.appenders.bit_length() + 1):
            size = min(self._load.appenders, 1 << (step - 1))
            self._engine.warm(self._users.steps[step][self._load.askers :][:size])


def _check_warm(responses: Sequence[RecommendResponse]) -> None:
    """Raise `EngineError` unless all were answered from cached prefixes."""
    states = {response.cache for response in check_answers(responses)}
    if states - {CacheState.WARM}:
        raise EngineError(f"requests must be warm, not {', '.join(sorted(states))}")
