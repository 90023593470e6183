"""What `xgr-stream bench catalog` holds answers against: updates that touch answers, and a check that can fail."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import perf_counter, thread_time

import numpy as np
import pytest

from xgr_stream.catalog import LiveCatalog
from xgr_stream.cli.benches.catalog_watch import AWAY, GO, MERGES, Truth, Updates, Watched, watch
from xgr_stream.config import EngineConfig
from xgr_stream.engine import Engine
from xgr_stream.errors import EngineError
from xgr_stream.testing.shapes import random_catalog, random_model
from xgr_stream.types import CatalogUpdate, ItemFilter, Recommendation, RecommendRequest, RecommendResponse, Status

CODES = (16, 16, 16)
BEAM = 8


@pytest.fixture
def engine() -> Engine:
    catalog = random_catalog(CODES, 500, tags=20)
    engine = Engine.load(random_model("tiny", CODES), catalog, config=EngineConfig(device="cpu", beam_width=BEAM))
    for user in range(2):
        engine.append(f"user-{user}", [catalog.item_ids[row] for row in range(9 * user, 9 * user + 9)])
    return engine


def timed(call: Callable[[], object]) -> tuple[float, float]:
    started = perf_counter(), thread_time()
    call()
    return perf_counter() - started[0], thread_time() - started[1]


def watched(engine: Engine, items: int) -> Watched:
    users = [f"user-{user}" for user in range(2)]
    requests = [(RecommendRequest("r", user, k=BEAM), engine.history.view(user)) for user in users]
    return watch(engine, requests, items, timed=timed, random=np.random.default_rng(0))


def test_merges_go_on_among_batches_however_few_items_are_asked_for(engine: Engine) -> None:
    found = watched(engine, 1)
    assert len(found.swaps) == len(found.merges) >= MERGES
    assert found.items == 2 * BEAM * len(found.batches)
    assert engine.catalog.version.endswith(f"+{found.updates}"), "something waits"
    engine.check_integrity()


Deaf = Callable[[LiveCatalog, CatalogUpdate], bool]


@pytest.mark.parametrize(
    ("unheard", "message"),
    [
        (lambda _, update: not update.available, "is not available"),
        (lambda _, update: update.sid is None, "is not in it"),
        (lambda live, update: live.base.sid(update.item_id) not in (None, update.sid), "has the semantic ID"),
        (lambda _, update: "tag-0" in update.tags, "has a denied tag"),
    ],
)
def test_an_engine_that_does_not_hear_of_an_update_is_told(
    unheard: Deaf, message: str, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    apply = LiveCatalog.apply

    def partly(live: LiveCatalog, updates: Sequence[CatalogUpdate], position: int) -> None:
        apply(live, [update for update in updates if not unheard(live, update)], position)

    monkeypatch.setattr(LiveCatalog, "apply", partly)
    with pytest.raises(EngineError, match=rf"item '[\w-]+' was recommended in catalog version .*\d+ and {message}"):
        watched(engine, 1_000)


def test_an_engine_that_names_another_version_is_told(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    apply = LiveCatalog.apply
    monkeypatch.setattr(LiveCatalog, "apply", lambda live, some, position: apply(live, some, max(0, position - 1)))
    with pytest.raises(EngineError, match=r"names catalog version .*~\d+, and \d+ updates were applied"):
        watched(engine, 1_000)


def answer(*items: Recommendation, version: str = "0f.0+0", status: Status = Status.OK) -> RecommendResponse:
    return RecommendResponse("r", "ann", status, items, message="why", catalog_version=version)


def test_the_truth_is_the_table_and_the_last_update_of_each_item() -> None:
    catalog = random_catalog(CODES, 500, tags=500)
    truth, request = Truth(catalog.columns), RecommendRequest("r", "ann")
    first, second = (Recommendation(catalog.item_ids[row], 0.0, tuple(catalog.sids[row].tolist())) for row in (0, 499))
    truth.check(request, answer(first, second, version="0f.0"))
    tagged = RecommendRequest("r", "ann", filter=ItemFilter(deny=catalog.columns.tags.of_row(0)))
    for asked, wrong, message in (
        (request, answer(first, first), "was recommended before"),
        (request, answer(first._replace(sid=second.sid)), "has the semantic ID"),
        (request, answer(first._replace(item_id="501")), r"'501' .* is not in it"),
        (request, answer(first._replace(item_id="new")), r"'new' .* is not in it"),
        (request, answer(first, version="0f.0+0~1"), "and 0 updates were applied"),
        (request, answer(status=Status.ERROR), "was not answered in catalog version .*: why"),
        (tagged, answer(second, first), "has a denied tag"),
    ):
        with pytest.raises(EngineError, match=message):
            truth.check(asked, wrong)
    truth.apply([CatalogUpdate(first.item_id, None), CatalogUpdate("new", (1, 2, 3))])
    truth.apply([CatalogUpdate(first.item_id, second.sid)])
    now = first._replace(sid=second.sid), Recommendation("new", 0.0, (1, 2, 3))
    truth.check(tagged, answer(*now, version="0f.0+2~3"))
    truth.apply([CatalogUpdate("new", (1, 2, 3), available=False)])
    with pytest.raises(EngineError, match=r"'new' .* is not available"):
        truth.check(request, answer(*now, version="0f.0+4"))


def test_updates_touch_what_was_recommended_and_bring_it_back() -> None:
    catalog = random_catalog(CODES, 500, tags=20)
    truth = Truth(catalog.columns)
    updates = Updates(truth, CODES, np.random.default_rng(0))
    assert updates.behind({}) == []
    kinds: list[set[str]] = []
    gone: list[str] = []
    back: list[str] = []
    for number in range(15):
        rows = range(number * 20, number * 20 + 20)
        shown = {catalog.item_ids[r]: Recommendation(catalog.item_ids[r], 0.0, tuple(catalog.sids[r])) for r in rows}
        some = updates.behind(shown)
        assert len({update.item_id for update in some}) == len(some)
        away = [update.item_id for update in some if not update.available or update.sid is None]
        assert len(away) in (GO, GO + 1)
        assert shown.keys() >= set(away)
        kinds.append({kind for each in some if (kind := kind_of(truth, each, back=each.item_id in gone))})
        back += [update.item_id for update in some if update.item_id in gone]
        gone += away
        truth.apply(some)
    assert kinds == [{"new"}, {"moved"}, {"new"}, {"retagged"}, {"gone"}] * 3
    assert gone[: len(back)] == back
    assert AWAY <= len(gone) - len(back) <= AWAY + GO + 1


def kind_of(truth: Truth, update: CatalogUpdate, *, back: bool) -> str | None:
    """None: it goes, or comes back."""
    place = truth.place(update.item_id)
    if place is None:
        return None if back else "new"
    if update.sid is None:
        return "gone"
    if update.sid != place.sid:
        return "moved"
    return "retagged" if update.tags != place.tags else None
