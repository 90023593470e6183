"""Chunked prefill: who waits for whom, and that everybody is answered whatever goes wrong."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future

import pytest

from tests.property.users import record
from tests.scheduler.devices import HeldReport
from xgr_stream.config import CacheConfig, EngineConfig, WindowConfig
from xgr_stream.engine import Engine, WarmReport
from xgr_stream.errors import OutOfMemory
from xgr_stream.history import HistoryStore, HistoryView
from xgr_stream.metrics import Metrics
from xgr_stream.scheduler import prefill
from xgr_stream.scheduler.clock import SystemClock
from xgr_stream.scheduler.versions import Versions
from xgr_stream.scheduler.worker import DeviceWorker
from xgr_stream.testing import tiny_catalog, tiny_model
from xgr_stream.testing.null_engine import TOKENS_PER_EVENT, NullEngine, NullPendingAnswers, NullWarmReport
from xgr_stream.types import CacheState, RecommendRequest, RecommendResponse, Status, UserEvent

MODEL = tiny_model()
CHUNK = 10 * TOKENS_PER_EVENT
LONG, SHORT = 100, 3
"""Events."""


class Stepwise(NullEngine):
    """Each chunk waits for a permit, and is computed while `computed` is set; notes what it did."""

    def __init__(self, version: str = "null") -> None:
        super().__init__(version=version)
        self.permits = threading.Semaphore(0)
        self.computed = threading.Event()
        self.computed.set()
        self.did: list[str] = []
        self.open = 0
        self.fails: Exception | None = None

    def begin(self, requests: Sequence[tuple[RecommendRequest, HistoryView | None]]) -> NullPendingAnswers:
        self.did.append("answer " + " ".join(request.request_id for request, _ in requests))
        return super().begin(requests)

    def warm(self, views: Sequence[HistoryView]) -> NullWarmReport:
        self.did += [f"append to {view.user_id}" for view in views]
        return super().warm(views)

    def prefilling(self, view: HistoryView, chunk_tokens: int) -> Generator[HeldReport, None, None]:  # type: ignore[override]
        self.open += 1
        try:
            for report in super().prefilling(view, chunk_tokens):
                assert self.permits.acquire(timeout=20)
                if self.fails is not None:
                    raise self.fails
                self.did.append(f"chunk of {view.user_id}")
                yield HeldReport(report.users, report.tokens, self.computed)
        finally:
            self.open -= 1


class Device:
    def __init__(self, challenger: Stepwise | None = None, **config: int) -> None:
        """`challenger`: a second version, which has half of the users."""
        self.engine = Stepwise()
        self.metrics = Metrics()
        self.versions: Versions[Stepwise] = Versions(self.engine)
        if challenger is not None:
            self.versions.challenge(challenger, "canary", 0.5)
        own = EngineConfig(prefill_chunk_tokens=CHUNK, **config)
        self.worker = DeviceWorker(self.versions, own, SystemClock(), self.metrics)
        self.history = HistoryStore()

    def view(self, user: str, events: int) -> HistoryView:
        for _ in range(events):
            self.history.apply(UserEvent(user, "item-1"))
        view = self.history.view(user)
        assert view is not None
        return view

    def ask(self, user: str, events: int, timeout_s: float | None = None) -> Future[RecommendResponse]:
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        return self.worker.submit(RecommendRequest(user, user), self.view(user, events), deadline)

    def warm(self) -> None:
        """Somebody whose prefix is at hand asked just now."""
        assert self.ask("warm", SHORT).result(10).status is Status.OK


def until(condition) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


@pytest.fixture
def device() -> Iterator[Device]:
    device = Device()
    device.worker.start()
    yield device
    device.engine.permits.release(1_000)
    device.worker.stop(5)
    assert device.engine.open == 0


def test_a_request_waits_for_a_chunk_of_another_s_prefill(device: Device) -> None:
    device.warm()
    long = device.ask("long", LONG)
    device.engine.permits.release(2)
    until(lambda: device.engine.did.count("chunk of long") == 2)
    short = device.ask("short", SHORT)
    device.engine.permits.release(1)
    assert short.result(10).cache is CacheState.COLD
    assert not long.done()
    device.engine.permits.release(7)
    response = long.result(10)
    assert (response.event_count, response.cache) == (LONG, CacheState.COLD)
    assert device.engine.did[-1] == "answer long"
    assert device.metrics.registry.get_sample_value("xgr_append_tokens_total") == LONG * TOKENS_PER_EVENT
    assert device.metrics.registry.get_sample_value("xgr_append_batches_total") == 10  # of one user


def test_a_prefill_gets_on_while_others_always_ask(device: Device) -> None:
    device.warm()
    device.engine.permits.release(1_000)
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            device.ask("warm", 0).result(10)

    asking = [threading.Thread(target=ask) for _ in range(3)]
    for thread in asking:
        thread.start()
    assert device.ask("long", LONG).result(10).status is Status.OK
    stop.set()
    for thread in asking:
        thread.join(10)


def test_no_batch_is_started_beside_a_prefill_that_is_overdue(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefill, "PATIENCE", 0.0)
    device.warm()
    device.engine.computed.clear()
    long = device.ask("long", LONG)
    device.engine.permits.release(1_000)
    until(lambda: "chunk of long" in device.engine.did)
    short = device.ask("short", SHORT)
    time.sleep(0.1)  # a batch would be answered in a tenth of it
    assert not short.done()
    device.engine.computed.set()
    assert short.result(10).status is long.result(10).status is Status.OK


def test_no_append_that_is_due_goes_before_a_prefill_that_is_overdue(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prefill, "PATIENCE", 0.0)
    device.warm()
    device.engine.computed.clear()
    device.engine.permits.release(1_000)
    long = device.ask("long", LONG)
    until(lambda: "chunk of long" in device.engine.did)
    device.worker.want_append(device.view("warm", SHORT))
    time.sleep(0.1)  # three times as long as an append waits before it is due
    device.engine.computed.set()
    assert long.result(10).status is Status.OK
    until(lambda: "append to warm" in device.engine.did)
    last_chunk = max(i for i, what in enumerate(device.engine.did) if what == "chunk of long")
    assert device.engine.did.index("append to warm") > last_chunk


def test_with_nobody_else_a_prefill_is_whole(device: Device) -> None:
    assert device.ask("long", LONG).result(10).cache is CacheState.COLD
    assert device.engine.did == ["answer long"]


def test_requests_of_one_user_share_a_prefill(device: Device) -> None:
    device.warm()
    device.engine.permits.release(1_000)
    first, second = device.ask("long", LONG), device.ask("long", 1)
    assert {first.result(10).event_count, second.result(10).event_count} <= {LONG, LONG + 1}
    assert device.engine.did.count("chunk of long") <= -(-(LONG + 1) * TOKENS_PER_EVENT // CHUNK)


def test_a_user_nobody_asked_for_yet_is_prefilled_in_chunks_too(device: Device) -> None:
    device.worker.want_append(device.view("long", LONG))
    device.engine.permits.release(3)
    until(lambda: device.engine.did.count("chunk of long") == 3)
    short = device.ask("short", SHORT)
    device.engine.permits.release(1)
    assert short.result(10).status is Status.OK
    assert not device.engine.is_resident("long")
    device.engine.permits.release(100)
    until(lambda: device.engine.is_resident("long"))
    assert device.ask("long", 0).result(10).cache is CacheState.WARM


@pytest.mark.parametrize("error", [None, RuntimeError("broken")])
def test_a_user_ahead_whose_prefill_turns_out_to_have_no_steps_is_warmed_at_once(error: Exception | None) -> None:
    """As one with a copy in host memory, of whom more lacks than a chunk."""
    device = Device()
    warm = device.engine.warm

    def warmed(views: Sequence[HistoryView]) -> NullWarmReport:
        if error is not None:
            raise error
        return warm(views)

    device.engine.prefilling = lambda view, chunk_tokens: iter(())  # type: ignore[method-assign,assignment,return-value]
    device.engine.warm = warmed  # type: ignore[method-assign]
    device.worker.start()
    device.worker.want_append(device.view("long", LONG))
    if error is None:
        until(lambda: device.engine.is_resident("long"))
        assert device.engine.did == ["append to long"]
    else:
        until(lambda: device.metrics.registry.get_sample_value("xgr_appends_shed_total") == 1)
    assert device.ask("long", 0).result(10).error is None
    assert device.worker.stop(5)


def test_a_second_user_to_be_prefilled_ahead_keeps_no_append_behind_them() -> None:
    """Nobody is in a hurry, but the short ones need not wait for the chunks of two."""
    device = Device(max_batch_tokens=CHUNK)
    device.worker.start()
    device.worker.want_appends([device.view("long", LONG)])
    device.engine.permits.release(1)
    until(lambda: device.engine.did)
    device.worker.want_appends([device.view("longer", 2 * LONG), device.view("short", SHORT)])
    device.engine.permits.release(2)
    until(lambda: device.engine.is_resident("short"))
    assert not device.engine.is_resident("long")
    device.engine.permits.release(1_000)
    until(lambda: device.engine.is_resident("longer"))
    chunks = [did for did in device.engine.did if did.startswith("chunk")]
    assert chunks == ["chunk of long"] * 10 + ["chunk of longer"] * 20
    assert device.worker.stop(5)


@pytest.mark.parametrize("how", ["expired", "withdrawn", "forgotten"])
def test_what_nobody_waits_for_any_more_is_given_up(device: Device, how: str) -> None:
    device.warm()
    long = device.ask("long", LONG, timeout_s=0.3 if how == "expired" else None)
    device.engine.permits.release(2)
    until(lambda: device.engine.did.count("chunk of long") == 2)
    if how == "expired":
        time.sleep(0.35)
    elif how == "withdrawn":
        assert long.cancel()
    else:
        device.worker.forget(["long"])
    device.engine.permits.release(1)
    until(lambda: device.engine.open == 0 or how == "forgotten")
    device.engine.permits.release(1_000)
    if how == "expired":
        assert long.result(10).error == "deadline_exceeded"
    if how == "forgotten":
        assert long.result(10).event_count == LONG
    else:
        device.warm()
        assert not device.engine.is_resident("long")


@pytest.mark.parametrize("error", [RuntimeError("broken"), OutOfMemory("full")])
def test_a_chunk_that_fails_leaves_the_request_to_the_usual_way(device: Device, error: Exception) -> None:
    device.warm()
    device.engine.fails = error
    device.engine.permits.release(1_000)
    assert device.ask("long", LONG).result(10).status is Status.OK
    assert device.engine.did[-1] == "answer long"


@pytest.mark.parametrize("asked", [False, True])
def test_a_chunk_that_fails_is_charged_to_the_version_whose_it_is(asked: bool) -> None:
    """Not to the primary, nor to the version of a request that has come meanwhile."""
    device = Device(Stepwise("challenger"))
    challenger = device.versions.engines[1]
    theirs, primarys = (
        next(user for user in map(str, range(100)) if device.versions.of(user) is engine)
        for engine in (challenger, device.engine)
    )
    device.worker.start()
    device.worker.want_append(device.view(theirs, LONG))
    challenger.permits.release(1)
    until(lambda: challenger.did)
    if asked:
        device.ask("warm", SHORT)
        device.ask(primarys, LONG)
        challenger.permits.release(1)
        until(lambda: len(challenger.did) == 2 + challenger.did.count("answer warm"))
    challenger.fails = OutOfMemory("full")
    challenger.permits.release(1)
    until(lambda: device.metrics.registry.get_sample_value("xgr_out_of_memory_total"))
    device.engine.permits.release(1_000)
    assert device.worker.stop(5)
    pace, whole = device.worker._pace, EngineConfig().max_batch_rows
    versions = [each.version for each in device.versions.engines]
    rows = [pace.budget_for(version, (), 0, 1, pressed=False).rows for version in versions]
    assert dict(zip(versions, rows, strict=True)) == {"null": whole, "challenger": whole // 2}


def test_a_request_that_needs_the_memory_of_another_s_prefill_gets_it() -> None:
    """Pages of what is being prefilled can't be had otherwise."""
    window = WindowConfig(40, 20)
    needed = Engine.load(MODEL, tiny_catalog(), config=EngineConfig(window=window, cache=CacheConfig(1 << 20, 4)))
    page_bytes = needed.cache.pool.bytes_per_page
    pages = needed.cache.pool.pages_for(MODEL.tokens.context_tokens(window.max_events))
    config = EngineConfig(window=window, cache=CacheConfig(page_bytes * pages, 4), prefill_chunk_tokens=16)
    engine = Engine.load(MODEL, tiny_catalog(), config=config)
    for user, events in (("ahead", 40), ("asks", 4)):
        record(engine, user, [(f"item-{number % 31}", None) for number in range(events)])
    metrics = Metrics()
    worker = DeviceWorker(engine, config, SystemClock(), metrics)
    asked: list[Future[RecommendResponse]] = []
    prefilling = engine.prefilling

    def prefilling_until_asked(view: HistoryView, chunk_tokens: int) -> Generator[WarmReport, None, None]:
        """The request comes behind the first chunk."""
        for report in prefilling(view, chunk_tokens):
            if not asked:
                asked.append(worker.submit(RecommendRequest("r", "asks"), engine.history.view("asks"), None))
            yield report

    engine.prefilling = prefilling_until_asked  # type: ignore[method-assign]
    worker.start()
    worker.want_append(engine.history.view("ahead"))
    until(lambda: asked)
    assert asked[0].result(30).error is None
    assert not engine.is_resident("ahead")
    later = worker.submit(RecommendRequest("r", "ahead"), engine.history.view("ahead"), None)
    assert later.result(30).error is None
    assert metrics.registry.get_sample_value("xgr_appends_shed_total") == 1
    assert worker.stop(5)
    engine.check_integrity()


class TooLarge(NullEngine):
    """For one user's requests."""

    tried = prefills = 0

    def begin(self, requests: Sequence[tuple[RecommendRequest, HistoryView | None]]) -> NullPendingAnswers:
        if any(request.user_id == "large" for request, _ in requests):
            self.tried += 1
            raise OutOfMemory("full")
        return super().begin(requests)

    def prefilling(self, view: HistoryView, chunk_tokens: int) -> Generator[NullWarmReport, None, None]:
        self.prefills += 1
        return super().prefilling(view, chunk_tokens)


def test_a_request_that_a_prefill_gave_way_to_is_tried_before_the_next_prefill_begins() -> None:
    device = Device()
    device.engine = engine = TooLarge()  # type: ignore[assignment]
    config = EngineConfig(prefill_chunk_tokens=CHUNK)
    device.worker = DeviceWorker(engine, config, SystemClock(), device.metrics)
    device.worker.start()
    device.warm()
    with device.worker.together():
        device.ask("warm", 0)
        large, long = device.ask("large", SHORT), device.ask("long", 10 * LONG)
    assert large.result(10).error == "out_of_memory"
    assert long.result(10).error is None
    assert engine.prefills == 2  # a batch of both is halved first, beside it
    assert engine.tried < 10
    assert device.worker.stop(5)


def test_stopping_with_a_prefill_under_way() -> None:
    device = Device()
    device.worker.start()
    device.warm()
    long = device.ask("long", LONG)
    device.engine.permits.release(2)
    until(lambda: device.engine.did.count("chunk of long") == 2)
    threading.Timer(0.2, device.engine.permits.release, (1,)).start()
    device.worker.stop(0.1)
    assert long.result(10).error == "shutting_down"
    until(lambda: device.engine.open == 0)
