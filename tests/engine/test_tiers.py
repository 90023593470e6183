"""Users who come back from host memory, as the engine's callers see them."""

from __future__ import annotations

import threading

import pytest

from tests.property.users import append, ask, record
from xgr_stream.config import CacheConfig, EngineConfig, WindowConfig
from xgr_stream.engine import Engine
from xgr_stream.errors import ConfigError
from xgr_stream.testing import tiny_catalog, tiny_model
from xgr_stream.types import CacheState, CatalogUpdate

MIB = 1 << 20


def engine_with(**cache: object) -> Engine:
    config = EngineConfig(window=WindowConfig(max_events=4, stride=2), cache=CacheConfig(MIB, 4, **cache))
    return Engine.load(tiny_model(), tiny_catalog(), config=config)


@pytest.fixture
def engine() -> Engine:
    return engine_with(host_bytes=MIB)


def always_copies(engine: Engine) -> Engine:
    """By what was measured, a copy that was slow on a busy machine is not the next one's way back."""
    engine._work._costs.prefers_copy = lambda num_tokens: True
    return engine


def events(*numbers: int) -> list[tuple[str, None]]:
    return [(f"item-{n}", None) for n in numbers]


def state(engine: Engine, user_id: str = "user") -> CacheState:
    engine.check_integrity()
    return ask(engine, (user_id, 3, 8))[0].cache


@pytest.mark.parametrize("host_bytes", [0, MIB])
def test_an_append_counts_no_holders_of_the_pages_that_it_goes_on_from(host_bytes: int, monkeypatch) -> None:
    config = EngineConfig(window=WindowConfig(max_events=100), cache=CacheConfig(MIB, 4, host_bytes=host_bytes))
    engine = Engine.load(tiny_model(), tiny_catalog(), config=config)
    append(engine, "user", events(1, 2))
    counted, retain = [], engine.cache.pool.retain
    monkeypatch.setattr(engine.cache.pool, "retain", lambda pages: (counted.append(len(pages)), retain(pages)))
    for number in range(10):
        append(engine, "user", events(number))
        engine.check_integrity()
    assert counted == []


def test_the_cache_state_says_that_a_user_came_back(engine):
    always_copies(engine)
    append(engine, "user", events(1, 2))
    on_device = engine.bytes_of("user")
    engine.demote(["user", "nobody"])
    in_host = engine.bytes_of("user")
    assert (on_device.device > 0, on_device.host) == (True, 0)
    assert (in_host.device, in_host.host, in_host.file) == (0, engine.stats().tiers.host_bytes_used, 0)
    assert not engine.is_resident("user")
    assert (engine.stats().users_warm, engine.stats().tiers.host_users) == (0, 1)
    assert state(engine) is CacheState.HOST
    assert state(engine) is CacheState.WARM
    record(engine, "user", events(3))
    engine.demote(["user"])
    assert state(engine) is CacheState.HOST  # with the event that it lacked
    assert ask(engine, ("user", 3, 8))[0].event_count == 3
    stats = engine.stats().tiers
    assert (stats.demoted, stats.promoted, stats.host_users) == (1, 2, 0)  # the second time the copy was there
    assert stats.promoted_bytes > stats.demoted_bytes > 0


def test_an_event_brings_a_user_back_before_the_request(engine):
    append(engine, "user", events(1, 2))
    engine.demote(["user"])
    record(engine, "user", events(3))
    engine.expect([engine.history.view("user")])
    assert engine.is_resident("user")
    assert state(engine) is CacheState.APPENDED


@pytest.mark.parametrize("chunk_tokens", [0, 4])
@pytest.mark.parametrize("where", ["device", "host", "nowhere"])
def test_an_event_counts_once_in_its_user_s_rate(engine, where: str, chunk_tokens: int):
    """Wherever the user is when it comes, and however it is appended."""
    append(engine, "user", events(1, 2))
    if where == "host":
        engine.demote(["user"])
    elif where == "nowhere":
        engine.forget(["user"])
    seen: list[str] = []
    engine.cache.worth.seen = seen.append
    for number in (3, 4):
        record(engine, "user", events(number))
        view = engine.history.view("user")
        engine.expect([view])
        if not chunk_tokens or not list(engine.prefilling(view, chunk_tokens)):
            engine.warm([view])
    assert seen == ["user"] * 2


def test_events_of_users_who_are_not_warmed_count_too(engine):
    append(engine, "user", events(1, 2))
    engine.forget(["user"])
    seen: list[str] = []
    engine.cache.worth.seen = seen.append
    for number in (1, 2, 3):
        record(engine, "user", events(number))
        engine.expect([engine.history.view("user")])
    assert ask(engine, ("user", 3, 8))[0].items
    assert seen == ["user"] * 4


def test_without_lower_tiers_an_event_does_nothing():
    engine = engine_with()
    append(engine, "user", events(1, 2))
    engine.demote(["user"])
    assert engine.stats().tiers is None
    engine.expect([engine.history.view("user")])
    assert not engine.is_resident("user")


def test_a_user_who_is_worth_less_than_those_on_the_device_is_not_brought_back():
    engine = engine_with(host_bytes=MIB)
    page = engine.cache.pool.bytes_per_page
    pages = engine.cache.pool.pages_for(engine.model.tokens.context_tokens(4))
    config = EngineConfig(
        window=engine.window, cache=CacheConfig(budget_bytes=2 * pages * page, page_size=4, host_bytes=MIB)
    )
    engine = Engine.load(engine.model, engine.catalog, config=config)
    for user_id in ("rare", "first", "second"):
        record(engine, user_id, events(1, 2, 3, 4))
    for user_id in ("rare", *("first", "second") * 9):
        assert ask(engine, (user_id, 3, 8))[0].items
    assert state(engine, "first") is CacheState.WARM
    assert not engine.is_resident("rare")
    engine.expect([engine.history.view("rare")])
    assert not engine.is_resident("rare")
    assert state(engine, "rare") in (CacheState.HOST, CacheState.COLD)


def test_a_copy_of_another_window_is_not_used(engine):
    append(engine, "user", events(1, 2, 3, 4))
    engine.demote(["user"])
    record(engine, "user", events(5, 1, 2))  # past the next window, which is at hand
    assert state(engine) is CacheState.COLD
    assert engine.stats().tiers.host_bytes_used == 0


def test_a_copy_of_what_an_item_was_before_is_not_used(engine):
    append(engine, "user", events(1, 2))
    engine.demote(["user"])
    engine.apply_updates([CatalogUpdate("item-1", sid=engine.catalog.sid("item-2"))])
    assert state(engine) is CacheState.COLD


def test_who_is_forgotten_is_forgotten_everywhere(engine):
    append(engine, "user", events(1, 2))
    engine.demote(["user"])
    engine.forget(["user"])
    assert engine.stats().tiers.host_bytes_used == 0
    assert state(engine) is CacheState.COLD


def test_pending_tokens_count_a_copy_as_what_could_be_computed_meanwhile(engine):
    append(engine, "user", events(1, 2, 3))
    view = engine.history.view("user")
    assert engine.pending_tokens(view) == 0
    engine.demote(["user"])
    copying = engine.pending_tokens(view)
    engine.forget(["user"])
    assert 0 < copying < engine.pending_tokens(view)


def test_what_is_computed_faster_than_copied_is_computed_until_that_is_doubted(engine):
    append(engine, "user", events(1, 2, 3))
    engine.demote(["user"])
    prefix = engine.cache.host.get("user").prefix
    one = prefix.num_tokens * engine.cache.pool.bytes_per_page // 4
    for _ in range(99):
        engine._work._costs.computed([prefix.num_tokens], 1e-3)
        engine._work._costs.copied(one, 1.1e-3)
    view = engine.history.view("user")
    everything = engine.pending_tokens(view)
    engine.expect([view])
    assert not engine.is_resident("user")
    assert state(engine) is CacheState.COLD
    assert engine.stats().tiers.recomputed == 1
    assert everything >= prefix.num_tokens
    for _ in range(3):
        engine._work._costs.preferred_computing()
    assert engine._work._costs.prefers_copy(prefix.num_tokens)


@pytest.mark.parametrize(
    ("cache", "says"),
    [
        ({"host_bytes": -1}, "host_bytes must be an integer of at least 0, not -1"),
        ({"file_bytes": MIB}, "file_bytes must be 0 without host_bytes"),
        ({"host_bytes": MIB, "file_bytes": MIB}, "file_bytes and file_directory must be given together"),
        ({"host_bytes": MIB, "file_directory": "/tmp"}, "file_bytes and file_directory must be given together"),
        ({"host_bytes": MIB, "file_bytes": MIB, "file_directory": ""}, "file_directory must be the path"),
        ({"host_bytes": 1 << 60}, "cache.host_bytes must be memory that there is"),
        ({"host_bytes": 1 << 70}, "cache.host_bytes must be memory that there is"),
        (
            {"host_bytes": MIB, "file_bytes": 1 << 70, "file_directory": "/tmp"},
            r"file_directory must be a directory with \d+ bytes free",
        ),
        ({"host_bytes": 9}, r"cache.host_bytes must be 0 or hold one window: \d+ bytes for 4 events"),
        ({"host_bytes": MIB, "file_bytes": 9, "file_directory": "/tmp"}, "cache.file_bytes must be 0 or hold one"),
        (
            {"host_bytes": MIB, "file_bytes": MIB, "file_directory": "/nowhere"},
            r"file_directory must be a directory with \d+ bytes free",
        ),
    ],
)
def test_settings_that_can_not_be_are_refused(cache, says):
    with pytest.raises(ConfigError, match=says):
        engine_with(**cache)


def test_a_user_on_the_way_from_the_file_is_not_computed_ahead(engine, tmp_path):
    pages = engine.cache.pool.pages_for(engine.model.tokens.context_tokens(4))
    page_bytes = engine.cache.host.arena.page_bytes
    engine = engine_with(
        host_bytes=4 * pages * page_bytes, file_bytes=20 * pages * page_bytes, file_directory=str(tmp_path)
    )
    always_copies(engine)
    users = [f"user-{number}" for number in range(6)]
    for user_id in users:
        append(engine, user_id, events(1, 2, 3))
        engine.demote([user_id])
        engine.expect([])
        engine.check_integrity()  # waits for the file
    moved = next(user_id for user_id in users if user_id in engine.cache.host.file)
    views = [engine.history.view(moved)]
    disk = threading.Event()
    engine.cache.host.file.file._jobs.put(lambda: disk.wait(10) and None)
    engine.expect(views)
    assert engine.warm(views).users == 0
    disk.set()
    engine.check_integrity()
    assert state(engine, moved) is CacheState.HOST
    stats = engine.stats().tiers
    assert stats.file_written >= stats.file_read == 1
    assert stats.file_failures == 0
