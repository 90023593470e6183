"""Which engine serves whom, and what a challenger that fails, or is slow, does to the primary's users: nothing."""

from __future__ import annotations

import gc
import math
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.scheduler.devices import Gate, Histories
from xgr_stream.config import EngineConfig, Role
from xgr_stream.errors import ConfigError, DeviceLost
from xgr_stream.history import HistoryView
from xgr_stream.metrics import Metrics
from xgr_stream.scheduler.pace import MAX_VERSIONS, Pace, Step
from xgr_stream.scheduler.versions import Share, Versions
from xgr_stream.scheduler.worker import DeviceWorker
from xgr_stream.testing import ManualClock, NullEngine
from xgr_stream.types import ItemFilter, RecommendRequest, RecommendResponse, Status

USERS = [f"user-{n}" for n in range(2_000)]
FIVE_PERCENT = ["user-20", "user-40", "user-97"]
"""Of the first hundred, by a share of 0.05 of "a version"."""

# Shares of users


@given(st.text(min_size=1), st.lists(st.text(min_size=1, max_size=20), max_size=20), st.floats(0, 1), st.floats(0, 1))
def test_a_larger_share_holds_a_smaller_one(salt: str, users: list[str], one: float, other: float) -> None:
    users = [user for user in users if user.encode("utf-8", "ignore").decode() == user]
    salt = salt.encode("utf-8", "ignore").decode() or "salt"
    small, large = Share(salt, min(one, other)), Share(salt, max(one, other))
    assert all(large.has(user) for user in users if small.has(user))
    assert all(Share(salt, 1.0).has(user) and not Share(salt, 0.0).has(user) for user in users)


@pytest.mark.parametrize("fraction", [0.01, 0.05, 0.3, 0.9])
def test_a_share_is_as_large_as_its_fraction(fraction: float) -> None:
    users = [f"user-{n}" for n in range(40_000)]
    share = Share("a version", fraction)
    deviation = math.sqrt(len(users) * fraction * (1 - fraction))
    assert abs(sum(map(share.has, users)) - len(users) * fraction) < 4.5 * deviation


def test_shares_of_two_versions_are_independent() -> None:
    users = [f"user-{n}" for n in range(40_000)]
    one, other = Share("one", 0.2), Share("other", 0.2)
    both = sum(one.has(user) and other.has(user) for user in users)
    assert abs(both - 1_600) < 4.5 * math.sqrt(1_600)


def test_who_a_version_s_users_are_never_changes() -> None:
    """Another worker, another release: the same users."""
    assert [user for user in USERS[:100] if Share("a version", 0.05).has(user)] == FIVE_PERCENT


# Routing


class Stage(Histories):
    """Two versions on a worker whose clock stands still."""

    def __init__(self, role: Role = "canary", fraction: float = 0.5, **config: int) -> None:
        super().__init__()
        self.primary = NullEngine(history=self.history, version="a")
        self.challenger = NullEngine(history=self.history, version="b")
        self.versions: Versions[NullEngine] = Versions(self.primary)
        self.versions.challenge(self.challenger, role, fraction)
        self.metrics = Metrics()
        self.lost: list[DeviceLost] = []
        self.worker = DeviceWorker(
            self.versions, EngineConfig(**config), ManualClock(), self.metrics, on_lost=self.lost.append
        )

    def user_of(self, version: str) -> str:
        return next(user for user in USERS if self.versions.of(user).version == version)

    def ask(self, user: str, request_id: str = "r", **fields: int) -> RecommendResponse:
        view = self.history.view(user)
        return self.worker.submit(RecommendRequest(request_id, user, **fields), view, None).result(10)

    def until(self, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + 10
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.002)

    def counted(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(name, labels) or 0.0

    def shadowed(self, outcome: str) -> float:
        return self.counted("xgr_shadow_requests_total", version="b", outcome=outcome)


@pytest.fixture
def canary() -> Iterator[Stage]:
    stage = Stage()
    stage.worker.start()
    yield stage
    stage.worker.stop(5)


def test_a_challenger_must_be_another_version() -> None:
    versions = Versions(NullEngine(version="a"))
    with pytest.raises(ConfigError, match="another version"):
        versions.challenge(NullEngine(version="a"), "canary", 0.5)


def test_each_user_gets_their_version_and_events_warm_it(canary: Stage) -> None:
    users = [canary.user_of("a"), canary.user_of("b")]
    canary.worker.want_appends([canary.view(user, 3) for user in users])
    canary.until(lambda: canary.primary.is_resident(users[0]) and canary.challenger.is_resident(users[1]))
    assert not canary.primary.is_resident(users[1])
    assert not canary.challenger.is_resident(users[0])
    answers = [canary.ask(user) for user in users]
    assert [(answer.model_version, answer.cache) for answer in answers] == [("a", "warm"), ("b", "warm")]
    canary.until(lambda: canary.counted("xgr_model_users_warm", version="b"))
    assert canary.counted("xgr_model_requests_total", version="b", outcome="ok") == 1
    assert canary.counted("xgr_users_warm") == 2


def test_a_batch_is_of_one_version() -> None:
    stage = Stage()
    gate = Gate(stage.primary)
    stage.challenger.before_answer = gate
    stage.worker.start()
    one, other = stage.user_of("a"), stage.user_of("b")
    futures = [stage.worker.submit(RecommendRequest("a0", one), None, None)]
    assert gate.entered.wait(10)
    for request_id in ("b1", "a1", "b2", "a2"):
        user = one if request_id.startswith("a") else other
        futures.append(stage.worker.submit(RecommendRequest(request_id, user), None, None))
    gate.go_on.set()
    assert [future.result(10).request_id for future in futures] == ["a0", "b1", "a1", "b2", "a2"]
    assert gate.batches == [["a0"], ["b1", "b2"], ["a1", "a2"]]
    assert stage.worker.stop(5)


def test_what_a_user_has_is_forgotten_by_all(canary: Stage) -> None:
    user = canary.user_of("b")
    canary.view(user)
    canary.ask(user)
    canary.worker.between_batches(canary.versions.drop).result(10)
    assert canary.ask(user).model_version == "a"
    canary.worker.between_batches(lambda: canary.versions.challenge(canary.challenger, "canary", 0.5)).result(10)
    canary.worker.forget([user])
    canary.worker.call(lambda: None).result(10)
    assert not canary.primary.is_resident(user)
    assert not canary.challenger.is_resident(user)


def test_a_swap_under_requests_loses_none(canary: Stage) -> None:
    """Promotion among requests of many threads: each has one answer, of a version that served then."""
    answers: list[RecommendResponse] = []

    def asks(thread: int) -> None:
        for n in range(200):
            answers.append(canary.ask(USERS[n], f"{thread}-{n}"))

    threads = [threading.Thread(target=asks, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    while len(answers) < 200:
        time.sleep(0.001)
    canary.worker.between_batches(canary.versions.promote).result(10)
    promoted = canary.ask("anybody")
    for thread in threads:
        thread.join()
    assert promoted.model_version == "b"
    assert len({answer.request_id for answer in answers}) == len(answers) == 800
    assert {answer.status for answer in answers} == {Status.UNKNOWN_USER}
    assert {answer.model_version for answer in answers} == {"a", "b"}


def test_a_version_that_is_let_go_leaves_no_reference(canary: Stage) -> None:
    canary.view("u")
    for user in USERS[:10]:
        canary.ask(user)
    gone = weakref.ref(canary.primary)
    gc.disable()
    try:
        canary.worker.between_batches(canary.versions.promote).result(10)
        del canary.primary
        canary.ask("u")
        canary.until(lambda: gone() is None)
    finally:
        gc.enable()


# A canary that fails


def out_of_memory(_: object) -> None:
    raise MemoryError


def broken(_: object) -> None:
    raise RuntimeError("a layer that nobody tested")


@pytest.mark.parametrize("fails", [out_of_memory, broken])
def test_the_primary_answers_what_a_canary_fails_on(canary: Stage, fails: Callable[[object], None]) -> None:
    canary.challenger.before_answer = fails
    users = [user for user in USERS[:40] if canary.versions.of(user).version == "b"]
    with canary.worker.together():
        futures = [canary.worker.submit(RecommendRequest(user, user), None, None) for user in users]
    answers = [future.result(10) for future in futures]
    assert {(answer.status, answer.model_version) for answer in answers} == {(Status.UNKNOWN_USER, "a")}
    assert [answer.request_id for answer in answers] == users
    canary.worker.call(lambda: None).result(10)
    assert canary.counted("xgr_model_requests_total", version="b", outcome="failed") == len(users)
    assert not canary.lost


def test_the_primary_answers_where_a_canary_s_scores_are_no_numbers(canary: Stage) -> None:
    begin = canary.challenger.begin

    def spoilt(requests: Sequence[tuple[RecommendRequest, HistoryView | None]]) -> object:
        pending = begin(requests)
        pending.responses[:] = [
            RecommendResponse(request.request_id, request.user_id, Status.ERROR, error="engine", message="not numbers")
            for request, _ in requests
        ]
        return pending

    canary.challenger.begin = spoilt  # type: ignore[method-assign, assignment]
    assert canary.ask(canary.user_of("b")).model_version == "a"
    assert canary.counted("xgr_model_requests_total", version="b", outcome="engine") == 1


def test_a_canary_s_lack_of_memory_makes_no_batch_of_the_primary_smaller() -> None:
    pace = Pace(EngineConfig(), ManualClock())
    for _ in range(5):
        pace.cut("b")
    rows = [pace.budget_for(version, (), 0, 1, pressed=False).rows for version in ("a", "b")]
    assert rows == [2048, 64]


def test_a_request_that_is_wrong_is_not_tried_twice(canary: Stage) -> None:
    excluded = tuple(f"item-{n}" for n in range(1_000))
    asked: list[int] = []
    canary.primary.before_answer = lambda batch: asked.append(len(batch))
    view = canary.view(canary.user_of("b"))
    request = RecommendRequest("r", view.user_id, filter=ItemFilter(exclude=excluded))
    assert canary.worker.submit(request, view, None).result(10).model_version == "b"
    assert asked == []


# Step times


def test_each_version_has_step_times_of_its_own_and_a_new_one_the_other_s() -> None:
    clock = ManualClock()
    pace = Pace(EngineConfig(max_batch_rows=1024), clock)

    def ran(version: str, seconds: float) -> None:
        began = clock.now()
        step = Step(version, 512, 0)
        pace.begins(began, step)
        clock.advance(seconds)
        pace.ended(began, step, ())

    assert pace.batch_s("a") == 0
    for _ in range(5):
        ran("a", 0.1)
    assert pace.batch_s("b") == pace.batch_s("a") > 0.1
    for _ in range(5):
        ran("b", 0.4)
    assert pace.batch_s("b") == pytest.approx(4 * pace.batch_s("a"))
    assert pace.share_s(Step("b", 64, 0)) == pytest.approx(4 * pace.share_s(Step("a", 64, 0)))
    assert pace.starts_at(clock.now(), "b") > pace.starts_at(clock.now(), "a")
    for n in range(MAX_VERSIONS):
        ran(f"later-{n}", 0.4)
    assert len(pace._known) == MAX_VERSIONS


def test_a_primary_s_step_times_outlive_those_of_the_challengers_that_came_and_went() -> None:
    clock = ManualClock()
    pace = Pace(EngineConfig(max_batch_rows=1024), clock)

    def ran(version: str, seconds: float) -> None:
        for _ in range(5):
            began = clock.now()
            step = Step(version, 512, 0)
            pace.begins(began, step)
            clock.advance(seconds)
            pace.ended(began, step, ())

    ran("primary", 0.1)
    known = pace.batch_s("primary")
    for n in range(2 * MAX_VERSIONS):
        ran(f"challenger-{n}", 0.4)
        assert pace.batch_s("primary") == pytest.approx(known)
        ran("primary", 0.1)


# Metrics


def test_what_was_counted_of_a_version_goes_with_it(canary: Stage) -> None:
    for version in ("a", "b"):
        canary.ask(canary.user_of(version))
    canary.until(lambda: canary.counted("xgr_model_cache_bytes", version="b", kind="budget"))
    canary.worker.between_batches(canary.versions.drop).result(10)
    canary.worker.call(lambda: canary.metrics.keep_models(["a"])).result(10)
    told = {
        sample.labels["version"]
        for metric in canary.metrics.registry.collect()
        for sample in metric.samples
        if "version" in sample.labels
    }
    assert told == {"a"}


def test_totals_never_fall_when_a_version_goes(canary: Stage) -> None:
    stats = canary.challenger.stats
    canary.challenger.stats = lambda: replace(stats(), beams_dead=5)  # type: ignore[method-assign]
    canary.until(lambda: canary.ask("u") and canary.counted("xgr_beams_dead_total") == 5)
    canary.worker.between_batches(canary.versions.drop).result(10)
    time.sleep(0.06)
    canary.until(lambda: canary.ask("u"))
    assert canary.counted("xgr_beams_dead_total") == 5
