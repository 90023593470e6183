import gc
import weakref
from typing import Any

import numpy as np
import pytest

from tests.engine.no_memory import OUT_OF_MEMORY
from tests.property.users import ask, record
from xgr_stream.catalog import Catalog
from xgr_stream.config import EngineConfig
from xgr_stream.engine import Engine
from xgr_stream.engine.append import Appender
from xgr_stream.errors import EngineError, InvalidEvent, InvalidRequest, NothingLegal
from xgr_stream.testing import save_tiny_model, tiny_catalog, tiny_items, tiny_model
from xgr_stream.types import CacheState, CatalogUpdate, ItemFilter, RecommendRequest, Status, UserEvent


def events(*numbers: int) -> list[tuple[str, None]]:
    return [(f"item-{n}", None) for n in numbers]


def test_models_and_catalogs_load_from_paths(tmp_path):
    tiny_catalog().save(tmp_path / "catalog.parquet")
    model = save_tiny_model(tmp_path / "model")
    engine = Engine.load(model, tmp_path / "catalog.parquet")
    engine.append("user", ["item-1", "item-2"])
    assert len(engine.recommend("user", k=5)) == 5


def test_no_request_waits_for_the_compiler(monkeypatch):
    asked = []
    monkeypatch.setattr("xgr_stream.catalog.row_table.in_c", lambda: asked.append("row_table.c"))
    monkeypatch.setattr("xgr_stream.engine.engine.library", lambda: asked.append("cpu.c"))
    Engine(tiny_model(), tiny_catalog(), config=EngineConfig())
    assert {"row_table.c", "cpu.c"} <= set(asked)


def test_the_cache_state_says_how_the_user_was_found(engine):
    record(engine, "user", events(1, 2))
    assert ask(engine, ("user", 3, 8))[0].cache is CacheState.COLD
    assert ask(engine, ("user", 3, 8))[0].cache is CacheState.WARM
    record(engine, "user", events(3))
    (response,) = ask(engine, ("user", 3, 8))
    assert response.cache is CacheState.APPENDED
    assert response.event_count == 3
    assert set(response.stages_ms) == {"append", "decode"}
    assert ask(engine, ("nobody", 3, 8))[0].cache is CacheState.NONE


def test_a_user_counts_as_seen_when_their_decode_is_on_its_way(engine, monkeypatch):
    record(engine, "user", events(1, 2))
    ask(engine, ("user", 3, 8))
    steps: list[str] = []
    begin, seen = engine._decoder.begin, engine.cache.worth.seen
    monkeypatch.setattr(engine._decoder, "begin", lambda *args: (steps.append("begun"), begin(*args))[1])
    monkeypatch.setattr(engine.cache.worth, "seen", lambda user_id: (steps.append("seen"), seen(user_id)))
    assert ask(engine, ("user", 3, 8))[0].cache is CacheState.WARM
    assert steps == ["begun", "seen"]


def test_the_response_names_offset_model_and_catalog(engine):
    engine.history.apply(UserEvent("user", "item-1"), offset=41)
    engine.warm([engine.history.view("user")])
    engine.history.apply(UserEvent("user", "unheard-of"), offset=47)
    (response,) = ask(engine, ("user", 3, 8))
    assert response.cache is CacheState.WARM  # the event brought no tokens
    assert (response.event_count, response.event_offset) == (2, 47)
    assert response.model_version == engine.version
    assert response.catalog_version == engine.catalog.version


def test_a_request_with_an_older_view_gets_what_is_cached(engine):
    record(engine, "user", events(1))
    old = engine.history.view("user")
    record(engine, "user", events(2))
    engine.warm([engine.history.view("user")])
    assert engine.warm([old]).tokens == 0
    assert engine.pending_tokens(old) == 0
    assert engine.cache.get("user").event_count == 2


def test_a_prefix_of_a_life_that_was_forgotten_is_not_used(engine):
    for item in ("item-1", "item-2", "item-3"):
        engine.history.apply(UserEvent("u", item), offset=1)
    before = engine.history.view("u")
    assert engine.history.forget_at("u", partition=0, offset=9) is not None
    engine.history.apply(UserEvent("u", "item-4"), offset=10)
    engine.history.apply(UserEvent("fresh", "item-4"))
    engine.answer([(RecommendRequest("late", "u"), before)])
    response, fresh = ask(engine, ("u", 3, 8), ("fresh", 3, 8))
    assert (response.cache, response.event_count) == (CacheState.COLD, 1)
    assert [item.item_id for item in response.items] == [item.item_id for item in fresh.items]
    engine.check_integrity()


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_requests_of_one_user_in_a_batch_see_the_newest_view(engine, order):
    views = []
    for n in range(2):
        record(engine, "user", events(n))
        views.append(engine.history.view("user"))
    responses = engine.answer([(RecommendRequest(f"r-{i}", "user", 3), views[i]) for i in order])
    assert [response.event_count for response in responses] == [2, 2]
    assert responses[0].items == responses[1].items
    engine.forget(["user"])
    assert engine.warm([views[i] for i in order]).users == 1
    assert engine.cache.get("user").event_count == 2


def test_the_window_moves_in_steps_and_a_warm_user_follows(engine):
    appended = engine
    fresh = Engine.load(engine.model, engine.catalog, config=engine.config)
    for n in range(9):
        record(appended, "user", events(n))
        record(fresh, "user", events(n))
        fresh.forget(["user"])
        (warm,) = ask(appended, ("user", 5, 32))
        (cold,) = ask(fresh, ("user", 5, 32))
        assert [r.item_id for r in warm.items] == [r.item_id for r in cold.items]
        prefix = appended.cache.get("user")
        assert prefix.window_start == engine.window.start(n + 1)
        assert prefix.num_tokens == 3 * (n + 1 - prefix.window_start)


def test_pending_tokens_bound_what_warming_computes(engine):
    record(engine, "user", [*events(1, 2), ("unheard-of", None)])
    view = engine.history.view("user")
    assert engine.pending_tokens(view) == 9
    report = engine.warm([view])
    assert (report.users, report.tokens) == (1, 6)
    assert engine.pending_tokens(view) == 0
    record(engine, "user", events(3))
    assert engine.pending_tokens(engine.history.view("user")) == 3


def test_what_needs_no_tokens_counts_as_no_append(engine):
    """An item that the catalog lacks, and a prefix that is up to date already."""
    reports = []
    for item in ("item-1", "unheard-of", "item-2", None):
        if item is not None:
            engine.history.apply(UserEvent("ann", item))
        reports.append(engine.warm([engine.history.view("ann")]))
    assert [(report.users, report.tokens > 0) for report in reports] == [(1, True), (0, False), (1, True), (0, False)]
    assert engine.recommend("ann", k=1)


@pytest.mark.parametrize("failing", range(3))
def test_items_that_there_is_no_memory_to_look_up_are_looked_up_next_time(engine, monkeypatch, failing):
    """All that is known of an item, or nothing of it."""
    engine.append("ann", ["item-1"])
    concatenate, calls = np.concatenate, iter(range(10))

    def short(*arrays: Any, **options: Any) -> Any:
        if next(calls) == failing:
            raise MemoryError
        return concatenate(*arrays, **options)

    with monkeypatch.context() as patched:
        patched.setattr(np, "concatenate", short)
        record(engine, "ann", [("item-2", None), ("item-3", None)])
        with pytest.raises(MemoryError):
            engine.warm([engine.history.view("ann")])
    engine.append("bob", ["item-4", "item-5"])
    other = Engine.load(engine.model, tiny_catalog())
    other.append("bob", ["item-4", "item-5"])
    found, expected = (e.recommend("bob", k=60, beam_width=512, seen=True) for e in (engine, other))
    assert [item.item_id for item in found] == [item.item_id for item in expected]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=repr)
def test_an_append_that_there_is_no_memory_to_warm_its_user_for_has_happened(engine, monkeypatch, caplog, error):
    """Once: a caller who saw it raise would append the same again."""

    def fails(*_: object) -> None:
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(Appender, "run", fails)
        engine.append("ann", ["item-1", "item-2"])
    assert "no memory to warm a user" in caplog.text
    assert engine.history.view("ann").event_count == 2
    engine.check_integrity()
    (response,) = ask(engine, ("ann", 3, 8))
    assert (response.status, response.event_count) == (Status.OK, 2)


def test_an_append_that_fails_otherwise_says_so(engine, monkeypatch):
    def fails(*_: object) -> None:
        raise RuntimeError("CUDA error: device-side assert triggered")

    monkeypatch.setattr(Appender, "run", fails)
    with pytest.raises(RuntimeError, match="device-side assert"):
        engine.append("ann", ["item-1"])


def test_an_unknown_user_is_answered_from_popularity(engine):
    popularity = dict(zip(tiny_items()["item_id"], tiny_items()["popularity"], strict=True))
    best = sorted(popularity, key=popularity.__getitem__, reverse=True)
    record(engine, "stranger", [("unheard-of", None)])
    for user in ("nobody", "stranger"):
        (response,) = ask(engine, (user, 3, 8, ItemFilter(exclude=(best[0],))))
        assert response.status is Status.UNKNOWN_USER
        assert [r.item_id for r in response.items] == best[1:4]
    assert not engine.is_resident("stranger")
    assert [r.item_id for r in engine.recommend("nobody", k=2)] == best[:2]


def test_filters_that_leave_nothing_fail_that_request_alone(engine):
    record(engine, "user", events(1))
    bad, good = ask(engine, ("user", 3, 8, ItemFilter(allow=("unheard-of",))), ("user", 3, 8))
    assert (bad.status, bad.error) == (Status.ERROR, "nothing_legal")
    assert "filters" in bad.message
    assert good.status is Status.OK
    with pytest.raises(NothingLegal):
        engine.recommend("user", exclude=engine.catalog.item_ids)


def test_filters_that_leave_nothing_cost_nothing_and_fail_where_nothing_is_popular_too():
    """A prefix is not computed for them, nor kept, in place of another's; whoever the user is."""
    items = {name: column for name, column in tiny_items().items() if name != "popularity"}
    engine = Engine.load(tiny_model(), Catalog.from_table(items, codes=(8, 8, 8)))
    record(engine, "user", events(3))
    nothing = ItemFilter(allow=("unheard-of",))
    for user in ("user", "nobody"):
        (response,) = ask(engine, (user, 3, 8, nothing))
        assert (response.status, response.error) == (Status.ERROR, "nothing_legal")
    assert not engine.is_resident("user")


def test_filters_of_which_only_a_search_tells_that_they_leave_nothing_fail_alike(engine, monkeypatch):
    monkeypatch.setattr("xgr_stream.catalog.filters.LOOKED_AT", 1)
    record(engine, "user", events(1))
    red = [item for item, tags in zip(tiny_items()["item_id"], tiny_items()["tags"], strict=True) if "red" in tags]
    engine.catalog.set_available(red, False)
    wanted = ItemFilter(allow=("red",))
    assert engine.catalog.resolve(wanted).leaves_any() is None
    for found in ask(engine, ("user", 3, 8, wanted), ("nobody", 3, 8, wanted)):
        assert (found.status, found.error) == (Status.ERROR, "nothing_legal")
    engine.catalog.set_available(red[-1:], True)
    for found in ask(engine, ("user", 3, 8, wanted), ("nobody", 3, 8, wanted)):
        assert [item.item_id for item in found.items] == red[-1:]


def test_more_than_there_is_gives_all_there_is(engine):
    record(engine, "user", events(1))
    (response,) = ask(engine, ("user", 500, 1000))
    assert len(response.items) == engine.catalog.num_items
    assert engine.stats().beams_dead == 1000 - engine.catalog.trie.num_leaves


def test_a_beam_beyond_the_limit_is_refused(engine):
    with pytest.raises(InvalidRequest, match="beam_width must be"):
        engine.recommend("user", beam_width=100_000)


def test_events_that_are_not_a_list_are_refused(engine):
    with pytest.raises(InvalidEvent, match="items must be a sequence of item ids, not 'item-1'"):
        engine.append("user", "item-1")
    with pytest.raises(InvalidEvent, match=r"actions must be one per item \(2\), not 1"):
        engine.append("user", ["item-1", "item-2"], ["view"])
    with pytest.raises(InvalidEvent, match="item_id must be"):
        engine.append("user", ["item-1", ""])
    assert engine.history.view("user") is None


@pytest.mark.parametrize("name", ["exclude", "allow", "deny"])
def test_filters_that_are_no_collections_are_refused(engine, name):
    engine.append("user", ["item-1"])
    for wrong in ("item-1", None, 7, [7], {"item-1": 1}):
        with pytest.raises(InvalidRequest, match=f"{name} must be a sequence of strings"):
            engine.recommend("user", **{name: wrong})
    engine.recommend("user", exclude={"item-1"}, deny=dict.fromkeys(["red"]).keys())


@pytest.mark.parametrize("codes", [(8,), (8, 8, 8)])
def test_scores_that_are_not_numbers_are_an_error(codes):
    engine = Engine.load(tiny_model(codes), tiny_catalog(codes))
    engine.append("user", ["item-1"])
    engine.cache.hidden.fill_(float("nan"))
    with pytest.raises(EngineError, match="scores are not numbers"):
        engine.recommend("user")


def test_batches_beyond_the_row_limit_are_split():
    engine = Engine.load(tiny_model(), tiny_catalog(), config=EngineConfig(max_batch_rows=1024))
    for i in range(5):
        record(engine, f"user-{i}", events(i, i + 1))
    together = ask(engine, *((f"user-{i}", 5, 600) for i in range(5)))
    for i, response in enumerate(together):
        assert response.request_id == f"request-{i}"
        assert response.items == ask(engine, (f"user-{i}", 5, 600))[0].items


def test_a_failed_forward_leaves_no_memory_taken(engine, monkeypatch):
    engine.append("user", ["item-1"])
    record(engine, "user", events(2))

    def broken(*args: object) -> None:
        raise RuntimeError("device lost")

    monkeypatch.setattr(engine.model.decoder, "forward", broken)
    with pytest.raises(RuntimeError, match="device lost"):
        ask(engine, ("user", 3, 8))
    assert not engine.is_resident("user")
    engine.check_integrity()
    monkeypatch.undo()
    assert ask(engine, ("user", 3, 8))[0].status is Status.OK


def test_actions_reach_the_model():
    model = tiny_model(xgr={"event": {"actions": {"buy": [1]}}})
    engine = Engine.load(model, tiny_catalog())
    engine.append("plain", ["item-1", "item-2"])
    engine.append("buyer", ["item-1", "item-2"], ["buy", None])
    assert engine.cache.get("plain").num_tokens == 6
    assert engine.cache.get("buyer").num_tokens == 7


def test_half_precision_ranks_much_as_float32_does(tmp_path):
    path = save_tiny_model(tmp_path / "model")
    full, half = (Engine.load(path, tiny_catalog(), config=EngineConfig(dtype=d)) for d in ("float32", "bfloat16"))
    for engine in (full, half):
        engine.append("user", [f"item-{n}" for n in range(12)])
    top = [{r.item_id for r in engine.recommend("user", k=20)} for engine in (full, half)]
    assert len(top[0] & top[1]) >= 15
    assert full.cache.hidden.element_size() == 2 * half.cache.hidden.element_size()


def test_a_large_filter_set_is_kept_within_bounds(engine):
    record(engine, "user", events(1))
    tags = ["red", "green", "blue", *(f"tag-{n}" for n in range(40))]
    catalog = Catalog.from_table({**tiny_items(), "tags": [[tags[i % len(tags)]] for i in range(60)]}, codes=(8, 8, 8))
    engine.use_catalog(catalog)
    for start in range(0, 40, 5):
        filters = [ItemFilter(allow=(tag,)) for tag in tags[start : start + 5]]
        for item_filter, response in zip(filters, ask(engine, *(("user", 9, 64, f) for f in filters)), strict=True):
            index = tags.index(item_filter.allow[0])
            expected = {f"item-{i}" for i in range(60) if i % len(tags) == index}
            assert {r.item_id for r in response.items} == expected


def test_an_append_that_raises_has_changed_nothing(engine):
    too_many = [f"action-{i}" for i in range(33_000)]
    with pytest.raises(InvalidEvent, match="at most 32767 distinct"):
        engine.append("user", ["item-1"] * len(too_many), too_many)
    assert engine.history.view("user") is None


@pytest.mark.parametrize("items", ["item-1", None, iter(["item-1"])])
def test_items_and_actions_must_be_sequences(engine, items):
    with pytest.raises(InvalidEvent, match="items must be a sequence of item ids"):
        engine.append("user", items)
    with pytest.raises(InvalidEvent, match="actions must be a sequence of strings or None"):
        engine.append("user", ["item-1", "item-2"], "ab")


def test_users_to_forget_are_not_one_string(engine):
    with pytest.raises(InvalidRequest, match="user_ids must be a collection"):
        engine.forget("user")


def test_an_engine_that_is_let_go_frees_its_memory_at_once() -> None:
    """No cycle waits for a collection, which a worker puts off."""
    engine = Engine.load(tiny_model(), tiny_catalog())
    engine.append("u", ["item-1"])
    engine.recommend("u", seen=True, caps={"red": 1})
    engine.recommend("u", temperature=1.0, tail=[1])
    engine.score("u", ["item-1"])
    engine.apply_updates([CatalogUpdate("new", (1, 2, 3))])
    gone = [weakref.ref(engine), weakref.ref(engine.cache), weakref.ref(engine.catalog)]
    gc.disable()
    try:
        engine.close()
        del engine
        assert [ref() for ref in gone] == [None, None, None]
    finally:
        gc.enable()


def test_an_engine_prepares_itself_in_steps() -> None:
    """On the CPU there are none: nothing is captured there."""
    assert list(Engine.load(tiny_model(), tiny_catalog()).preparing()) == []
