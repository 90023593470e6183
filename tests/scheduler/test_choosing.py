"""What one turn puts before the policy, and how much of it the turn looks at."""

from __future__ import annotations

from xgr_stream.config import EngineConfig
from xgr_stream.history import HistoryStore, HistoryView
from xgr_stream.metrics import Metrics
from xgr_stream.scheduler.appends import AppendQueue
from xgr_stream.scheduler.choosing import CONSIDERED, Choice
from xgr_stream.scheduler.pace import Pace
from xgr_stream.scheduler.policy import APPEND_AGEING_S
from xgr_stream.scheduler.versions import Versions
from xgr_stream.scheduler.work import Work, WorkQueue
from xgr_stream.testing import ManualClock, NullEngine
from xgr_stream.types import RecommendRequest, UserEvent


class Counting(NullEngine):
    """How many users it was asked about."""

    looks = 0

    def pending_tokens(self, view: HistoryView) -> int:
        self.looks += 1
        return super().pending_tokens(view)


def view_of(history: HistoryStore, user: str) -> HistoryView:
    history.apply(UserEvent(user, "item-1"))
    view = history.view(user)
    assert view is not None
    return view


def test_users_who_were_turned_out_meanwhile_are_looked_at_once() -> None:
    """Their appends are due, and theirs is no longer what an append is: they wait with those who have no prefix, and
    keep nobody who has one from theirs."""
    history, engine, appends = HistoryStore(), Counting(), AppendQueue()
    clock = ManualClock()
    engine.warm([view_of(history, "resident")])
    for n in range(CONSIDERED + 10):
        appends.put(view_of(history, f"gone-{n}"), resident=True, now=clock.now())
    appends.put(view_of(history, "resident"), resident=True, now=clock.now())
    clock.advance(2 * APPEND_AGEING_S)
    pace = Pace(EngineConfig(), clock)
    choice = Choice(Versions(engine), WorkQueue(), appends, pace, clock, Metrics())
    waiting = [Work(RecommendRequest("r", "somebody"), None, None, 32, 0)]

    def turn() -> tuple[int, list[str]]:
        engine.looks = 0
        works, views = choice.next(waiting, overloaded=False, appends=True, prefill=False)
        assert works or views
        return engine.looks, [view.user_id for view in views]

    assert turn() == (CONSIDERED, [])
    assert turn() == (11, ["resident"])
    appends.remove(["resident"])
    assert [turn() for _ in range(3)] == [(0, [])] * 3
    assert len(appends) == CONSIDERED + 10
    assert {view.user_id for view in appends.first(1_000)} == {f"gone-{n}" for n in range(CONSIDERED + 10)}
