"""Copies, appends and forks that fail half-way, and copies in the file that are of no use: nothing is lost or left."""

from __future__ import annotations

import threading

import pytest

from tests.engine.no_memory import OUT_OF_MEMORY
from tests.engine.test_tiers import MIB, always_copies, engine_with, events, state
from tests.property.users import append, ask, record
from xgr_stream.engine import Engine
from xgr_stream.engine.lanes import Mark
from xgr_stream.errors import OutOfMemory
from xgr_stream.types import CacheState, RecommendRequest


@pytest.fixture
def engine(tmp_path) -> Engine:
    return always_copies(engine_with(host_bytes=MIB, file_bytes=MIB, file_directory=str(tmp_path)))


def refuse(*_: object, **__: object) -> None:
    raise OutOfMemory("no more")


def in_file(engine: Engine, *numbers: int) -> None:
    """A user with these events, whose prefix is in the file alone."""
    append(engine, "user", events(*numbers))
    engine.demote(["user"])
    host = engine.cache.host
    host._reserve_pages = host.arena.num_pages
    engine.expect([])
    engine.check_integrity()  # waits for the file
    host._reserve_pages = 0
    assert (engine.bytes_of("user").host, engine.bytes_of("user").file > 0) == (0, True)


def hold_the_file(engine: Engine) -> threading.Event:
    """It does nothing more until this is set."""
    go_on = threading.Event()

    def hold() -> None:
        assert go_on.wait(10)

    engine.cache.host.file.file._jobs.put(hold)
    return go_on


def let_the_file_work(engine: Engine) -> None:
    passed = threading.Event()
    engine.cache.host.file.file._jobs.put(passed.set)
    assert passed.wait(10)


def test_a_request_finds_what_came_from_the_file_though_nothing_happened_in_between(engine):
    in_file(engine, 1, 2)
    record(engine, "user", events(3))
    engine.expect([engine.history.view("user")])
    let_the_file_work(engine)
    assert ask(engine, ("user", 3, 8))[0].cache is CacheState.HOST


def test_figures_say_what_the_file_has_done_though_nothing_happened_since(engine):
    in_file(engine, 1, 2)
    record(engine, "user", events(3))
    go_on = hold_the_file(engine)
    engine.expect([engine.history.view("user")])
    assert engine.stats().tiers.file_read == 0
    go_on.set()
    let_the_file_work(engine)
    assert engine.stats().tiers.file_read == 1


def test_so_does_an_append(engine):
    in_file(engine, 1, 2)
    record(engine, "user", events(3))
    view = engine.history.view("user")
    engine.expect([view])
    let_the_file_work(engine)
    assert engine.warm([view]).users == 1
    assert engine.stats().tiers.promoted == 1


def test_a_copy_that_can_not_be_gone_on_from_is_not_read(engine):
    in_file(engine, 1, 2, 3, 4)
    record(engine, "user", events(5, 1, 2))  # their window moved
    engine.expect([engine.history.view("user")])
    assert engine.bytes_of("user").file == 0
    assert (engine.stats().tiers.file_read, engine.cache.host.is_coming("user")) == (0, False)
    assert state(engine) is CacheState.COLD


def test_who_is_turned_out_does_not_lose_the_copy_that_is_to_be_brought_up_to_date(engine):
    append(engine, "user", events(1, 2))
    engine.demote(["user"])
    assert state(engine) is CacheState.HOST
    free = engine.cache.host.arena.free
    rest = free.allocate(free.num_free)
    append(engine, "user", events(3))
    engine.demote(["user"])  # no room for the page that came to it
    free.release(rest)
    assert state(engine) is CacheState.HOST


@pytest.mark.parametrize("direction", ["out", "in"])
def test_no_memory_for_longer_buffers_loses_none(engine, monkeypatch, direction):
    append(engine, "user", events(1, 2))
    mover = engine._work.mover
    if direction == "in":
        engine.demote(["user"])
    mover._out_buffer.pages = mover._out_buffer.pages[:1]
    with monkeypatch.context() as patch:
        patch.setattr(mover, "_make_buffers", refuse)
        with pytest.raises(OutOfMemory):
            engine.demote(["user"]) if direction == "out" else ask(engine, ("user", 3, 8))
    engine.check_integrity()
    engine.demote(["user"])
    assert state(engine) is CacheState.HOST
    engine.forget(["user"])
    assert (engine.stats().bytes_used, engine.stats().tiers.host_bytes_used) == (0, 0)


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=repr)
def test_no_memory_for_a_copy_ahead_of_need_fails_no_request(engine, monkeypatch, error):
    def fails(*_: object) -> None:
        raise error

    append(engine, "user", events(1, 2))
    engine._work._reserve = engine.cache.pool.num_pages
    with monkeypatch.context() as patch:
        patch.setattr("xgr_stream.engine.movement._each_run", fails)
        assert ask(engine, ("user", 3, 8))[0].cache is CacheState.WARM
    engine.check_integrity()
    assert engine.bytes_of("user").host == 0


@pytest.mark.parametrize("what", ["out", "in", "append", "fork"])
def test_what_fails_half_way_gives_nothing_back_before_what_was_begun_is_done(engine, monkeypatch, what):
    append(engine, "user", events(1, 2))
    if what == "in":
        engine.demote(["user"])
    record(engine, "user", events(3))
    steps: list[str] = []
    cache, host = engine.cache, engine.cache.host
    abandon, end = cache.abandon, host.end
    with monkeypatch.context() as patch:
        patch.setattr(Mark, "wait", lambda mark: steps.append("waited"))
        patch.setattr(cache, "abandon", lambda draft: (steps.append("gave back"), abandon(draft)))
        patch.setattr(host, "end", lambda demotion, done: (steps.append("gave back"), end(demotion, done=done)))
        patch.setattr("xgr_stream.engine.movement._each_run", refuse)
        patch.setattr(engine._work.appender, "run", refuse)
        turns = iter([engine._work.request_appender.run, refuse])  # the user's own event, then the fork
        patch.setattr(engine._work.request_appender, "run", lambda appends: next(turns)(appends))
        view = engine.history.view("user")
        forked = RecommendRequest("request", "user", 3, 8, tail=[5])
        begin = {
            "out": lambda: engine.demote(["user"]),
            "in": lambda: engine.expect([view]),
            "append": lambda: engine.warm([view]),
            "fork": lambda: engine.begin([(forked, view)]),
        }
        with pytest.raises(OutOfMemory):
            begin[what]()
    assert steps[0] == "waited"
    assert steps.count("gave back") == 1
    engine.check_integrity()
    assert ask(engine, ("user", 3, 8))[0].items
