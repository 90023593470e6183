"""An answer does not depend on the tier that its user came from, and all tiers balance after any sequence."""

from __future__ import annotations

import tempfile
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.property.cases import KV_CACHE_DTYPES, Case, cases
from tests.property.oracle import assert_same
from tests.property.users import append, ask, record
from xgr_stream.config import CacheConfig
from xgr_stream.engine import Engine
from xgr_stream.engine.sizing import page_bytes
from xgr_stream.types import CacheState, RecommendRequest

USERS = tuple(f"user-{i}" for i in range(6))


def tiered(case: Case, directory: str, *, device: int, host: int, file: int) -> Engine:
    """An engine whose tiers hold so many windows."""
    config, sized = case.model.config, CacheConfig(page_size=case.page_size, kv_cache_dtype=case.kv_cache_dtype)
    page = page_bytes(case.model, sized)
    pages = -(-case.model.tokens.context_tokens(case.max_events) // case.page_size)
    with_hidden = page + 4 * config.hidden_size
    cache = replace(
        sized,
        budget_bytes=device * pages * page,
        host_bytes=host * pages * with_hidden,
        file_bytes=file * pages * with_hidden,
        file_directory=directory if file else None,
    )
    return case.engine(cache=cache)


@settings(max_examples=40)
@given(st.data())
def test_an_answer_from_host_memory_is_bit_for_bit_the_warm_one(data):
    case = data.draw(cases(kv_cache_dtypes=KV_CACHE_DTYPES))
    engine = tiered(case, "", device=2, host=3, file=0)
    engine._work._costs.prefers_copy = lambda num_tokens: True  # whatever a busy machine took
    wanted, tail = data.draw(case.filters()), data.draw(st.none() | case.tails())
    append(engine, "user", data.draw(case.histories(max_events=6)))
    append(engine, "user", data.draw(case.histories(max_events=6)))
    request = RecommendRequest("r", "user", 3, 7, filter=wanted, tail=tail)
    view = engine.history.view("user")
    engine.answer([(request, view)])
    (warm,) = engine.answer([(request, view)])
    if warm.cache is CacheState.NONE:  # nothing in the window is known, or the filter leaves nothing
        return
    for _ in range(2):  # the second time the copy is there already
        engine.demote(["user"])
        assert not engine.is_resident("user")
        (host,) = engine.answer([(request, view)])
        assert (warm.cache, host.cache) == (CacheState.WARM, CacheState.HOST)
        assert host.items == warm.items
        engine.check_integrity()
    assert engine.stats().tiers.promoted == 2


@settings(max_examples=40)
@given(st.data())
def test_what_is_appended_behind_a_copy_is_what_is_appended_behind_the_prefix(data):
    """Bit for bit, since both compute the same forwards: no room for a next window ahead, and the copy is always used
    (by what was measured, a slow one is not, and a context that is computed at once rounds otherwise)."""
    case = data.draw(cases(kv_cache_dtypes=KV_CACHE_DTYPES))
    engines = [tiered(case, "", device=2, host=host, file=0) for host in (3, 0)]
    engines[0]._work._costs.prefers_copy = lambda num_tokens: True
    steps = data.draw(st.lists(case.histories(max_events=4), min_size=1, max_size=4))
    for step in steps:
        for engine in engines:
            append(engine, "user", step)
        engines[0].demote(["user"])
        if data.draw(st.booleans()):
            engines[0].expect([view] if (view := engines[0].history.view("user")) else [])
    behind_copy, behind_prefix = (ask(engine, ("user", 5, 9))[0].items for engine in engines)
    assert behind_copy == behind_prefix
    engines[0].check_integrity()


@settings(max_examples=50)
@given(st.data())
def test_all_tiers_balance_and_answer_as_a_cache_that_holds_all(data):
    case = data.draw(cases(kv_cache_dtypes=KV_CACHE_DTYPES))
    with tempfile.TemporaryDirectory() as directory:
        sizes = {"device": data.draw(st.integers(1, 3)), "host": data.draw(st.integers(1, 4))}
        engine = tiered(case, directory, file=data.draw(st.sampled_from([0, 1, 4])), **sizes)
        roomy = case.engine()
        users = st.lists(st.sampled_from(USERS), min_size=1, max_size=4)
        operation = st.one_of(
            st.tuples(st.just("append"), st.sampled_from(USERS), case.histories(max_events=4)),
            st.tuples(st.just("append"), st.sampled_from(USERS), case.histories(max_events=4)),
            st.tuples(st.just("ask"), users, case.filters()),
            st.tuples(st.just("ask"), users, case.filters()),
            st.tuples(st.just("ask with a tail"), users, case.tails()),
            st.tuples(st.just("warm"), users, st.none()),
            st.tuples(st.just("expect"), users, st.none()),
            st.tuples(st.just("demote"), users, st.none()),
            st.tuples(st.just("forget"), users, st.none()),
        )
        for name, subject, detail in data.draw(st.lists(operation, max_size=30)):
            if name == "append":
                for one in (engine, roomy):
                    record(one, subject, detail)
            elif name.startswith("ask"):
                tail = detail if name == "ask with a tail" else None
                filters = {} if tail is not None else {"filter": detail}
                found, expected = (
                    one.answer(
                        [
                            (RecommendRequest(str(i), user, k, 7, tail=tail, **filters), one.history.view(user))
                            for i, user in enumerate(subject)
                        ]
                    )
                    for one, k in ((engine, 3), (roomy, 7))
                )
                for answer, other in zip(found, expected, strict=True):
                    if tail is not None and answer.error == "invalid_request":
                        continue  # it has no room for forks
                    assert (answer.status, answer.error) == (other.status, other.error)
                    assert answer.event_count == other.event_count
                    assert_same(answer.items, other.items, 3, case.epsilon)
            elif name == "forget":
                engine.forget(subject)
            elif name == "demote":
                engine.demote(subject)
            else:
                views = [view for user in subject if (view := engine.history.view(user))]
                engine.warm(views) if name == "warm" else engine.expect(views)
            engine.check_integrity()
        engine.forget(USERS)
        engine.check_integrity()
        stats = engine.stats()
        assert stats.users_warm == stats.tiers.host_users == stats.tiers.file_users == 0
        assert stats.bytes_used == stats.tiers.host_bytes_used == stats.tiers.file_bytes_used == 0
