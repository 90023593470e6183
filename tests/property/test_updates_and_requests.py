"""Updates among events and requests: an answer is that of an exhaustive search over the version that it names."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.profiles import examples
from tests.property.cases import Case, cases
from tests.property.live import Base, Place, content, updates
from tests.property.oracle import EPSILON, Oracle, assert_same
from xgr_stream.catalog import Catalog
from xgr_stream.engine import Engine
from xgr_stream.errors import NothingLegal
from xgr_stream.testing.models import TAGS
from xgr_stream.types import NO_FILTER, CacheState, CatalogUpdate, ItemFilter, RecommendRequest, Status

USERS = ("ann", "bob")
NEW = ("new-1", "new-2", "new-3")


def base_of(case: Case) -> Base:
    columns = zip(*(case.items[name] for name in ("item_id", "sid", "tags")), strict=True)
    return {item_id: Place(tuple(sid), tuple(sorted(tags)), True) for item_id, sid, tags in columns}


def check(
    case: Case,
    engine: Engine,
    user: str,
    history: list[str],
    places: dict[str, Place],
    f: ItemFilter,
    temperature: float | None = None,
) -> None:
    request = RecommendRequest("r", user, k=1000, beam_width=1000, filter=f, temperature=temperature)
    (response,) = engine.answer([(request, engine.history.view(user))])
    columns = {
        "item_id": list(places),
        "sid": [place.sid for place in places.values()],
        "tags": [place.tags for place in places.values()],
    }
    oracle = Oracle(case.model, columns, case.oracle.xgr)
    away = [item_id for item_id, place in places.items() if not place.available]
    legal = oracle.legal(f, away, history)
    known = any(item in places for item in history[case.window.start(len(history)) :])
    if response.status is Status.ERROR:
        assert (response.error, legal) == (NothingLegal.code, {})
        return
    if not known:
        assert response.status is Status.UNKNOWN_USER
        assert {item.item_id for item in response.items} == set(legal)
        return
    assert response.event_count == len(history)
    context = oracle.context(history, window=case.window)
    expected = oracle.exhaustive(context, legal, case.normalizer)
    if temperature is not None:
        drawn = {item.item_id: item.score for item in response.items}
        assert drawn == pytest.approx({item.item_id: item.score for item in expected}, abs=EPSILON)
        return
    assert_same(response.items, expected, 1000)
    everything = oracle.exhaustive(context, oracle.legal(NO_FILTER, away), case.normalizer)
    asked = [*places, "item-of-another-catalog"]
    found = {item_id: score for item_id, score in engine.score(user, asked).items() if score is not None}
    assert found == pytest.approx({item.item_id: item.score for item in everything}, abs=EPSILON)


@examples(30)
@given(st.data())
def test_answers_are_those_of_the_version_that_they_name(data: st.DataObject) -> None:
    """New items too, and those that moved or have other tags, which nothing has merged: they are served from a
    delta."""
    case = data.draw(cases(normalizers=(data.draw(st.sampled_from(["level", "vocabulary", "legal", "legal"])),)))
    engine = case.engine()
    base = base_of(case)
    some = updates([*base, *NEW], case.codes, TAGS, base)
    new = updates(NEW, case.codes, TAGS, {})
    items = st.one_of(case.item_ids(), st.sampled_from(NEW))
    histories: dict[str, list[str]] = {user: [] for user in USERS}
    log: list[CatalogUpdate] = []
    merge = None
    some_steps = ["append", "update", "launch", "merge", "finish", "ask", "ask", "draw"]
    steps = data.draw(st.lists(st.sampled_from(some_steps), min_size=4, max_size=12))
    for step in ("append", "launch", "ask", *steps, "ask"):
        user = data.draw(st.sampled_from(USERS))
        if step == "append":
            seen = data.draw(st.lists(items, min_size=1, max_size=4))
            histories[user] += seen
            engine.append(user, seen)
        elif step in ("update", "launch"):
            batch = data.draw(st.lists(some if step == "update" else new, min_size=1, max_size=3))
            log += batch
            engine.update_catalog(batch, len(log))
        elif step == "merge" and merge is None:
            merge = engine.begin_merge()
            if merge is not None:
                merge.run()
        elif step == "finish" and merge is not None:
            merge.finish()
            merge = None
        elif step in ("ask", "draw"):
            heat = 1.0 if step == "draw" else None
            places = content(base, log, engine.catalog.version)
            check(case, engine, user, histories[user], places, data.draw(case.filters()), heat)
        engine.check_integrity()


def test_only_prefixes_that_hold_a_changed_item_are_computed_anew() -> None:
    case = Case((4, 4), 8, 0, False, 2, 16, 4)
    engine = case.engine()
    seen = {"ann": ["item-1", "new"], "bob": ["item-2", "item-3"], "cy": ["new"]}
    for user, items in seen.items():
        engine.append(user, items)

    def states() -> list[CacheState]:
        requests = [(RecommendRequest("r", user), engine.history.view(user)) for user in seen]
        return [response.cache for response in engine.answer(requests)]

    assert states() == [CacheState.WARM, CacheState.WARM, CacheState.NONE]
    sid = engine.catalog.sid("item-2")
    tags = ("red",) if "red" not in engine.catalog.columns.tags.of_rows(engine.catalog.rows(["item-2"]))[0] else ()
    engine.apply_updates([CatalogUpdate("item-2", sid, tags)])  # other tags are no other tokens
    engine.apply_updates([CatalogUpdate("item-1", engine.catalog.sid("item-1"), available=False)])
    assert states() == [CacheState.WARM, CacheState.WARM, CacheState.NONE]
    engine.apply_updates([CatalogUpdate("new", (3, 3)), CatalogUpdate("other", (3, 2))])
    assert engine.catalog.version.endswith("+4")
    assert states() == [CacheState.COLD, CacheState.WARM, CacheState.COLD]
    engine.apply_updates([CatalogUpdate("new", None)])
    assert states() == [CacheState.COLD, CacheState.WARM, CacheState.NONE]
    engine.use_catalog(Catalog.from_table(case.items, codes=case.codes))
    assert states() == [CacheState.COLD, CacheState.COLD, CacheState.NONE]
    engine.check_integrity()
