"""A shadow computes what users were answered once more, in time that nobody else needs, and fails alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest

from tests.scheduler.devices import Gate
from tests.scheduler.test_versions import Stage, broken, out_of_memory
from xgr_stream.scheduler.shadow import MAX_WAITING, overlap
from xgr_stream.types import Recommendation, RecommendRequest, RecommendResponse, Status


@pytest.fixture
def shadow() -> Iterator[Stage]:
    stage = Stage("shadow", 1.0)
    stage.worker.start()
    yield stage
    stage.worker.stop(5)


def test_a_shadow_computes_what_was_answered_and_nobody_sees_it(shadow: Stage) -> None:
    shadow.worker.want_append(shadow.view("u", 2))
    answer = shadow.ask("u")
    assert answer.model_version == "a"
    shadow.until(lambda: shadow.shadowed("compared"))
    shadow.worker.call(lambda: None).result(10)  # it is counted before it is measured
    assert shadow.challenger.is_resident("u")
    assert shadow.counted("xgr_shadow_overlap_sum", version="b") == 1.0
    assert shadow.counted("xgr_model_stage_seconds_count", version="b", stage="decode") == 1
    assert shadow.counted("xgr_model_stage_seconds_count", version="a", stage="decode") == 1


def test_a_shadow_s_prefixes_follow_events_without_a_request(shadow: Stage) -> None:
    shadow.worker.want_append(shadow.view("u", 2))
    shadow.until(lambda: shadow.challenger.is_resident("u"))
    assert shadow.primary.is_resident("u")


@pytest.mark.parametrize("fails", [out_of_memory, broken])
def test_a_shadow_fails_alone(shadow: Stage, fails: Callable[[object], None]) -> None:
    shadow.challenger.before_answer = fails
    shadow.challenger.warm = fails  # type: ignore[method-assign, assignment]
    shadow.worker.want_append(shadow.view("u", 2))
    assert shadow.ask("u").status is Status.OK
    outcome = "memory" if fails is out_of_memory else "failed"
    shadow.until(lambda: shadow.shadowed(outcome) >= 2)
    assert shadow.ask("u").model_version == "a"
    assert shadow.counted("xgr_out_of_memory_total") == 0
    assert not shadow.lost


def test_a_device_that_a_shadow_finds_lost_is_lost(shadow: Stage) -> None:
    def lost(_: object) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    shadow.challenger.before_answer = lost
    shadow.view("u")
    assert shadow.ask("u").status is Status.OK
    shadow.until(lambda: shadow.lost or shadow.worker.lost)


def test_a_shadow_waits_for_everybody_else_and_is_shed_first() -> None:
    """While requests wait no step of it is begun, and what is more than it may keep is counted as shed."""
    stage = Stage("shadow", 1.0, beam_width=64, max_batch_rows=1024)
    gate, order = Gate(stage.primary), []
    stage.challenger.before_answer = lambda batch: order.append("shadow")
    stage.view("u")
    stage.worker.start()
    futures = [stage.worker.submit(RecommendRequest("r0", "u"), stage.history.view("u"), None)]
    assert gate.entered.wait(10)
    for n in range(2 * MAX_WAITING):
        future = stage.worker.submit(RecommendRequest(f"r{n + 1}", "u"), stage.history.view("u"), None)
        future.add_done_callback(lambda _: order.append("answer"))
        futures.append(future)
    gate.go_on.set()
    assert {future.result(10).model_version for future in futures} == {"a"}
    stage.until(lambda: stage.shadowed("compared") == MAX_WAITING)
    assert order == ["answer"] * 2 * MAX_WAITING + ["shadow"] * MAX_WAITING
    assert stage.shadowed("shed") == MAX_WAITING + 1
    assert stage.worker.stop(5)


def test_a_shadow_s_work_refuses_nobody() -> None:
    """It is no part of what admission counts: a shadow that is slow makes no deadline of the primary's impossible."""
    stage = Stage("shadow", 1.0)
    stage.challenger.before_answer = lambda batch: time.sleep(0.02)
    stage.view("u")
    stage.worker.start()
    for n in range(20):
        assert stage.ask("u", f"r{n}").status is Status.OK
    pace = stage.worker._pace
    assert list(pace._known) == ["a"]
    assert stage.worker.stop(5)


def test_only_answers_to_the_same_question_are_compared(shadow: Stage) -> None:
    """Not what was drawn by chance, scores of candidates, or an answer from other events."""
    view = shadow.view("u")
    for request in (
        RecommendRequest("r1", "u", temperature=1.0, seed=1),
        RecommendRequest("r2", "u", candidates=["item-1"]),
        RecommendRequest("r3", "nobody"),
    ):
        shadow.worker.submit(request, view if request.user_id == "u" else None, None).result(10)
    shadow.worker.call(lambda: None).result(10)
    assert not shadow.worker._shadow.waits
    begin = shadow.challenger.begin
    shadow.challenger.begin = lambda batch: begin([(batch[0][0], shadow.view("u"))])  # type: ignore[method-assign]
    shadow.ask("u")
    shadow.until(lambda: shadow.shadowed("outdated"))
    assert shadow.shadowed("compared") == 0


def test_what_a_shadow_was_to_compute_is_dropped_with_its_user_and_with_itself() -> None:
    stage = Stage("shadow", 1.0)
    gate = Gate(stage.primary)
    stage.view("u")
    stage.worker.start()
    stage.worker.submit(RecommendRequest("r", "u"), stage.history.view("u"), None)
    assert gate.entered.wait(10)
    stage.worker.want_append(stage.view("u"))
    stage.worker.forget(["u"])
    gate.go_on.set()
    stage.worker.call(lambda: None).result(10)
    assert not stage.challenger.is_resident("u")
    stage.view("v")
    gate.go_on.clear()
    gate.entered.clear()
    asked = stage.worker.submit(RecommendRequest("r", "v"), stage.history.view("v"), None)
    assert gate.entered.wait(10)
    dropped = stage.worker.between_batches(stage.versions.drop)
    gate.go_on.set()
    assert asked.result(10).status is Status.OK
    dropped.result(10)
    stage.worker.call(lambda: None).result(10)
    assert not stage.worker._shadow.waits
    assert not stage.challenger.is_resident("v")
    assert stage.worker.stop(5)


def test_overlap_is_the_share_of_common_items() -> None:
    def answer(*items: str) -> RecommendResponse:
        return RecommendResponse("r", "u", Status.OK, tuple(Recommendation(item, -1.0, (0,)) for item in items))

    assert overlap(answer("a", "b", "c", "d"), answer("d", "x", "a", "y")) == 0.5
    assert overlap(answer("a", "b"), answer("a")) == 0.5
    assert overlap(answer(), answer()) == 1.0
