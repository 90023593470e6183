"""Several versions of the model on one device: whatever is loaded, promoted and dropped among events and requests, an
answer is that of an engine of the version that it names, alone, from the same history."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import replace
from itertools import count

from hypothesis import given
from hypothesis import strategies as st

from tests.profiles import examples
from tests.property.cases import ACTIONS, Case, cases
from tests.property.oracle import assert_same
from xgr_stream.config import EngineConfig
from xgr_stream.engine import Engine
from xgr_stream.history import HistoryStore, HistoryView
from xgr_stream.metrics import Metrics
from xgr_stream.scheduler.clock import SystemClock
from xgr_stream.scheduler.versions import Versions
from xgr_stream.scheduler.worker import DeviceWorker
from xgr_stream.types import RecommendRequest, RecommendResponse, Status, UserEvent

USERS = ("ann", "bob", "cy", "dee")
Asked = tuple[RecommendRequest, HistoryView | None, Future[RecommendResponse]]


class Stage:
    """A worker over the versions of a case: other weights, and another catalog, for each."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.history = HistoryStore()
        self.cases: dict[str, Case] = {}
        self._seeds = count(case.seed)
        self.versions: Versions[Engine] = Versions(self.another())
        self.metrics = Metrics()
        self.worker = DeviceWorker(self.versions, EngineConfig(), SystemClock(), self.metrics)
        self.asked: list[Asked] = []

    def another(self) -> Engine:
        case = replace(self.case, seed=next(self._seeds))
        engine = case.engine(history=self.history)
        self.cases[engine.version] = case
        return engine

    def ask(self, user: str, item_filter: object) -> None:
        request = RecommendRequest(f"r{len(self.asked)}", user, k=5, beam_width=1000, filter=item_filter)  # type: ignore[arg-type]
        view = self.history.view(user)
        self.asked.append((request, view, self.worker.submit(request, view, None)))

    def check(self) -> None:
        for request, view, future in self.asked:
            answer = future.result(30)
            assert answer.request_id == request.request_id
            alone_engine = self.cases[answer.model_version].engine(history=self.history)
            (alone,) = alone_engine.answer([(replace(request, k=1000), view)])
            if answer.status is Status.ERROR:
                assert answer.error == alone.error == "nothing_legal"
            elif answer.event_count == alone.event_count:  # else its prefix was ahead, since events went on
                assert_same(answer.items, alone.items, request.k)
            else:
                assert view is None or answer.event_count > alone.event_count


@contextmanager
def stage_of(case: Case) -> Iterator[Stage]:
    stage = Stage(case)
    stage.worker.start()
    try:
        yield stage
    finally:
        assert stage.worker.stop(30)
        for engine in stage.versions.engines:
            engine.check_integrity()


@examples(30)
@given(st.data())
def test_an_answer_is_its_version_s_own(data: st.DataObject) -> None:
    case = data.draw(cases())
    kinds = ["event", "ask", "ask", "ask", "canary", "shadow", "adjust", "promote", "drop"]
    with stage_of(case) as stage:
        changes = []
        for kind in data.draw(st.lists(st.sampled_from(kinds), min_size=6, max_size=24)):
            challenger = stage.versions.challenger
            fraction = data.draw(st.sampled_from((0.3, 0.6, 1.0)))
            if kind == "event":
                user = data.draw(st.sampled_from(USERS))
                item, action = data.draw(case.item_ids()), data.draw(st.sampled_from((None, *ACTIONS)))
                stage.history.apply(UserEvent(user, item, action))
                view = stage.history.view(user)
                assert view is not None
                stage.worker.want_append(view)
            elif kind == "ask":
                stage.ask(data.draw(st.sampled_from(USERS)), data.draw(case.filters()))
            elif kind in ("canary", "shadow"):
                engine = stage.another()
                change = stage.worker.between_batches(
                    lambda engine=engine, kind=kind, fraction=fraction: stage.versions.challenge(engine, kind, fraction)
                )
                changes.append(change)
                change.result(30)
            elif kind == "adjust" and challenger is not None:
                role = data.draw(st.sampled_from(("canary", "shadow")))
                changes.append(
                    stage.worker.between_batches(
                        lambda now=challenger, role=role, fraction=fraction: stage.versions.challenge(
                            now.engine, role, fraction
                        )
                    )
                )
            elif kind in ("promote", "drop"):
                changes.append(stage.worker.between_batches(getattr(stage.versions, kind)))
                changes[-1].result(30)  # a later adjust would bring back who is gone
        stage.check()
        for change in changes:
            change.result(30)


@examples(20)
@given(st.data())
def test_a_shadow_changes_no_answer(data: st.DataObject) -> None:
    """Item for item and score for score what the same worker answers without one."""
    case = data.draw(cases())
    user = st.sampled_from(USERS)
    script = data.draw(st.lists(st.tuples(user, case.item_ids(), case.filters()), min_size=1, max_size=12))
    answers: list[list[RecommendResponse]] = []
    for shadowed in (False, True):
        with stage_of(case) as stage:
            if shadowed:
                stage.versions.challenge(stage.another(), "shadow", 1.0)
            for who, item, item_filter in script:
                stage.history.apply(UserEvent(who, item))
                stage.ask(who, item_filter)
                stage.asked[-1][2].result(30)
            answers.append([replace(future.result(30), stages_ms={}) for *_, future in stage.asked])
    assert answers[0] == answers[1]
