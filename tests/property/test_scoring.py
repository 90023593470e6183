"""Scores of given candidates: those of an exhaustive search, whatever else is in the batch."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.profiles import examples
from tests.property.cases import KV_CACHE_DTYPES, Case, cases
from tests.property.oracle import EPSILON, assert_same
from tests.property.test_answers_do_not_depend_on_company import smallest_budget
from tests.property.users import append, record
from xgr_stream.engine import Engine
from xgr_stream.errors import InvalidRequest
from xgr_stream.types import CacheState, CatalogUpdate, RecommendRequest, RecommendResponse, Status, Unscored

NORMALIZERS = ("level", "vocabulary", "legal")
USERS = ("ann", "bob", "cy")


def answer(engine: Engine, *requests: RecommendRequest) -> list[RecommendResponse]:
    responses = engine.answer([(request, engine.history.view(request.user_id)) for request in requests])
    engine.check_integrity()
    return responses


@examples(100)
@given(st.data())
def test_candidates_have_the_scores_of_an_exhaustive_search(data: st.DataObject) -> None:
    case = data.draw(cases(normalizers=NORMALIZERS, kv_cache_dtypes=KV_CACHE_DTYPES))
    away = data.draw(st.lists(st.sampled_from(case.items["item_id"]), max_size=6))
    engine = case.engine(data.draw(st.sampled_from([smallest_budget(case), 1 << 20])))
    engine.catalog.set_available(away, False)
    histories = {user: data.draw(case.histories(max_events=6)) for user in USERS}
    for user, history in histories.items():
        (append if data.draw(st.booleans()) else record)(engine, user, history)
    some = st.lists(case.item_ids(), min_size=1, max_size=20)
    asked = data.draw(st.lists(st.tuples(st.sampled_from(USERS), st.none() | some), min_size=1, max_size=5))
    requests = [RecommendRequest(str(i), user, 5, candidates=candidates) for i, (user, candidates) in enumerate(asked)]

    responses = answer(engine, *requests)

    legal = case.oracle.legal(requests[0].filter, away)
    for request, response in zip(requests, responses, strict=True):
        if request.candidates is None:
            continue  # what it finds is another test's affair; here it is company
        history = histories[request.user_id]
        why = {item: Unscored.UNAVAILABLE for item in request.candidates if item in away}
        why |= {item: Unscored.UNKNOWN for item in request.candidates if item not in case.oracle.sid_of}
        scored = [item for item in request.candidates if item not in why]
        known = any(item in case.oracle.sid_of for item, _ in history[case.window.start(len(history)) :])
        assert response.event_count == len(history)
        assert response.shortfall is None
        if not known:
            assert not response.items
            assert response.unscored == {i: why.get(i, Unscored.UNKNOWN_USER) for i in request.candidates}
            assert response.status is Status.UNKNOWN_USER or (not scored and history)
            continue
        assert response.status is Status.OK
        assert response.unscored == why
        context = case.oracle.context([i for i, _ in history], [a for _, a in history], case.window)
        everything = case.oracle.exhaustive(context, legal, case.normalizer) if scored else []
        assert_same(response.items, [item for item in everything if item.item_id in scored], len(scored), case.epsilon)


@examples(50)
@given(st.data())
def test_they_are_the_scores_of_recommend(data: st.DataObject) -> None:
    case = data.draw(cases(normalizers=NORMALIZERS, kv_cache_dtypes=KV_CACHE_DTYPES))
    engine = case.engine()
    tail = data.draw(st.none() | case.tails())
    record(engine, "ann", [("item-0", None), *data.draw(case.histories(max_events=4)), ("item-0", "view")])
    found = {item.item_id: item for item in engine.recommend("ann", 40, beam_width=64, tail=tail)}
    (response,) = answer(engine, RecommendRequest("r", "ann", candidates=list(found), tail=tail))
    assert {item.item_id for item in response.items} == set(found)
    for item in response.items:
        assert abs(item.score - found[item.item_id].score) < case.epsilon
        assert item.sid == found[item.item_id].sid
    own = tuple(engine.model.tokens.tail.tolist())
    assert response.tail_computed == (tail is not None and tail != own)
    assert response.cache is CacheState.WARM
    assert response.event_count == engine.history.view("ann").event_count


CASE = Case((5, 4, 3), 20, 2, True, 2, 16, 4)


def test_score_names_each_item_in_the_order_asked() -> None:
    engine = CASE.engine()
    engine.catalog.set_available(["item-3"], False)
    engine.append("ann", ["item-1", "item-2"])
    scores = engine.score("ann", ["item-5", "item-3", "unheard-of", "item-4", "item-5"])
    assert list(scores) == ["item-5", "item-3", "unheard-of", "item-4"]
    assert scores["item-3"] is scores["unheard-of"] is None
    best = {item.item_id: item.score for item in engine.recommend("ann", 20, beam_width=64)}
    assert scores["item-5"] == pytest.approx(best["item-5"], abs=EPSILON)
    assert scores["item-4"] == pytest.approx(best["item-4"], abs=EPSILON)
    assert engine.score("ann", {"item-3", "nothing"}) == {"item-3": None, "nothing": None}
    assert engine.score("stranger", ["item-5"]) == {"item-5": None}
    for none in ([], None):
        with pytest.raises(InvalidRequest, match="candidates must hold 1 to 1024 items, not 0"):
            engine.score("ann", none)  # type: ignore[arg-type]
    with pytest.raises(InvalidRequest, match=r"^candidates must hold 1 to 1024 items, not 0$"):
        engine.score("ann", [])
    with pytest.raises(InvalidRequest, match=r"^candidates must be a sequence of strings"):
        engine.score("ann", "item-5")


def test_it_leaves_nothing_behind_and_changes_no_other_answer() -> None:
    engine = CASE.engine()
    engine.append("ann", ["item-1", "item-2"])
    free = engine.cache.pool.num_free
    plain = RecommendRequest("plain", "ann", 5)
    (before,) = answer(engine, plain)
    together = answer(engine, RecommendRequest("s", "ann", candidates=CASE.items["item_id"]), plain)
    assert together[1].items == before.items
    assert engine.cache.pool.num_free == free


def test_items_that_updates_brought_are_scored() -> None:
    engine = CASE.engine()
    engine.append("ann", ["item-1"])
    taken = engine.catalog.sid("item-0")
    engine.apply_updates(
        [CatalogUpdate("a-new", taken), CatalogUpdate("other", (4, 3, 2)), CatalogUpdate("item-2", None)]
    )
    scores = engine.score("ann", ["a-new", "item-0", "other", "item-2"])
    best = {item.item_id: item.score for item in engine.recommend("ann", 30, beam_width=64)}
    assert scores.pop("item-2") is None
    assert scores == pytest.approx({item: best[item] for item in scores}, abs=EPSILON)
    (response,) = answer(engine, RecommendRequest("r", "ann", candidates=["item-0", "a-new"]))
    assert [item.item_id for item in response.items] == ["a-new", "item-0"]
