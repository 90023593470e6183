"""`seen` excludes what the history keeps at the event that the answer names, whatever is in context or cached."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.profiles import examples
from tests.property.cases import Case, cases
from tests.property.oracle import assert_same
from tests.property.users import record
from xgr_stream.catalog import Catalog
from xgr_stream.config import EngineConfig, HistoryConfig
from xgr_stream.engine import Engine
from xgr_stream.history import HistoryStore
from xgr_stream.testing import tiny_model
from xgr_stream.types import MAX_EXCLUDE_ITEMS, ItemFilter, RecommendRequest, RecommendResponse, Status, UserEvent


@examples(100)
@given(st.data())
def test_what_the_history_keeps_at_the_event_that_the_answer_names(data: st.DataObject) -> None:
    case = data.draw(cases(normalizers=("level", "legal")))
    segment = data.draw(st.integers(1, 4))
    config = HistoryConfig(keep_events=case.max_events + data.draw(st.integers(0, 6)), segment_events=segment)
    engine = case.engine(history=HistoryStore(config))
    history = data.draw(case.histories(max_events=20))
    views = [None]
    for event in history:
        record(engine, "user", [event])
        views.append(engine.history.view("user"))
        if data.draw(st.booleans()):
            engine.warm([views[-1]])
    width = len(case.items["item_id"])
    asked = data.draw(st.lists(st.tuples(st.sampled_from(views), case.filters()), min_size=1, max_size=4))
    requests = [
        (RecommendRequest(str(i), "user", width, width, wanted), view) for i, (view, wanted) in enumerate(asked)
    ]

    responses = engine.answer(requests)

    newest = max(0 if view is None else view.event_count for view, _ in asked)
    for (request, _), response in zip(requests, responses, strict=True):
        count = response.event_count if response.status is Status.OK else newest
        assert count >= newest
        kept = [item for item, _ in history[config.first_kept(count) : count]]
        legal = case.oracle.legal(request.filter, seen=kept)
        if response.status is Status.ERROR:
            # One whose user is warm was answered from a later event than the views know, and saw more items.
            prefix = engine.cache.get("user")
            count = newest if prefix is None else max(newest, prefix.event_count)
            kept = [item for item, _ in history[config.first_kept(count) : count]]
            assert (response.error, case.oracle.legal(request.filter, seen=kept)) == ("nothing_legal", {})
        elif response.status is Status.UNKNOWN_USER:
            assert {item.item_id for item in response.items} == set(legal)
        else:
            items, actions = [item for item, _ in history[:count]], [action for _, action in history[:count]]
            context = case.oracle.context(items, actions, case.window)
            assert_same(response.items, case.oracle.exhaustive(context, legal, case.normalizer), width)
    engine.check_integrity()


def answer(engine: Engine, wanted: ItemFilter, k: int = 5) -> RecommendResponse:
    (response,) = engine.answer([(RecommendRequest("r", "user", k, filter=wanted), engine.history.view("user"))])
    return response


def test_items_before_the_window_and_of_events_without_a_prefix_are_seen() -> None:
    case = Case((4, 4), 12, 1, False, 2, 16, 3)
    engine = case.engine()
    seen = [f"item-{i}" for i in (1, 2, 3, 4, 5, 6, 7, 8)]
    record(engine, "user", [(item, None) for item in seen])
    left = set(case.items["item_id"]) - set(seen)
    assert {item.item_id for item in answer(engine, ItemFilter(seen=True), 12).items} == left
    engine.forget(["user"])
    assert {item.item_id for item in engine.recommend("user", 12, seen=True)} == left
    assert {item.item_id for item in engine.recommend("user", 12, seen=True, exclude=sorted(left)[:1])} == set(
        sorted(left)[1:]
    )
    assert answer(engine, ItemFilter(seen=True, exclude=tuple(left))).error == "nothing_legal"
    assert {item.item_id for item in engine.recommend("stranger", 12, seen=True)} == set(case.items["item_id"])


def test_an_item_that_comes_into_the_catalog_later_was_seen() -> None:
    from xgr_stream.types import CatalogUpdate

    case = Case((4, 4), 6, 1, False, 2, 16, 3)
    engine = case.engine()
    engine.append("user", ["new", "item-0"])
    assert engine.recommend("user", 6, seen=True)
    engine.apply_updates([CatalogUpdate("new", (3, 3)), CatalogUpdate("other", (3, 2))])
    found = {item.item_id for item in engine.recommend("user", 10, seen=True)}
    assert found == {*(f"item-{i}" for i in range(1, 6)), "other"}
    engine.apply_updates([CatalogUpdate("new", None)])
    assert {item.item_id for item in engine.recommend("user", 10, seen=True)} == found


@pytest.mark.parametrize("seen", [False, True])
def test_as_many_items_as_may_be_excluded(seen: bool) -> None:
    count = MAX_EXCLUDE_ITEMS + 40
    codes = (24, 24, 24)
    sids = [(i % 24, i // 24 % 24, i // 576) for i in range(count)]
    catalog = Catalog.from_table({"item_id": [f"i{i}" for i in range(count)], "sid": sids}, codes=codes)
    engine = Engine.load(tiny_model(codes), catalog, config=EngineConfig(beam_width=64))
    excluded = [f"i{(i * 7_919) % count}" for i in range(MAX_EXCLUDE_ITEMS)]  # 7,919 and the count share no factor
    assert len(set(excluded)) == MAX_EXCLUDE_ITEMS
    left = {f"i{i}" for i in range(count)} - set(excluded)
    past = sorted(left)[:7]
    for item in past:
        engine.history.apply(UserEvent("user", item))
    found = [item.item_id for item in engine.recommend("user", 40, exclude=excluded, seen=seen)]
    assert len(set(found)) == len(found)
    assert set(found) == left - (set(past) if seen else set())
    engine.check_integrity()
