"""A request's own tail gives what an engine answers whose xgr.json has that tail, and changes nothing for the user."""

from dataclasses import replace

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.profiles import examples
from tests.property.cases import KV_CACHE_DTYPES, cases
from tests.property.oracle import assert_same
from tests.property.test_answers_do_not_depend_on_company import smallest_budget
from tests.property.users import append, record
from xgr_stream.cache import UserPrefix
from xgr_stream.engine import Engine
from xgr_stream.types import RecommendRequest, Status

USERS = ("a", "b", "c")


def content(engine: Engine, prefix: UserPrefix) -> list[np.ndarray]:
    """All that a prefix holds: keys and values, and the last hidden state."""
    pool = engine.cache.pool
    pages = [own[:, prefix.pages].view(torch.uint8).numpy() for own in (pool.k, pool.v)]
    return [*pages, engine.cache.hidden[prefix.hidden_slot]]


@examples(40)
@given(st.data())
def test_a_tail_equals_that_of_the_checkpoint(data):
    case = data.draw(cases(normalizers=("level", "vocabulary", "legal"), kv_cache_dtypes=KV_CACHE_DTYPES))
    histories = {user: data.draw(case.histories(max_events=8)) for user in USERS}
    tails = st.none() | case.tails()
    asked = data.draw(st.lists(st.tuples(st.sampled_from(USERS), tails, case.filters()), min_size=1, max_size=6))
    requests = [
        RecommendRequest(f"request-{i}", user, 5, 40, item_filter, tail=tail)
        for i, (user, tail, item_filter) in enumerate(asked)
    ]
    # Room for one user and a fork, or for all.
    engine = case.engine(data.draw(st.sampled_from([smallest_budget(case) + 20 * page_bytes(case), 1 << 20])))
    for user, history in histories.items():
        (append if data.draw(st.booleans()) else record)(engine, user, history)

    answers = engine.answer([(request, engine.history.view(request.user_id)) for request in requests])
    engine.check_integrity()
    own = tuple(engine.model.tokens.tail.tolist())
    for request, answer in zip(requests, answers, strict=True):
        like = case if request.tail is None else replace(case, tail=request.tail)
        other = like.engine()
        record(other, request.user_id, histories[request.user_id])
        (expected,) = other.answer([(replace(request, tail=None), other.history.view(request.user_id))])
        assert (answer.status, answer.error) == (expected.status, expected.error)
        assert answer.event_count == expected.event_count
        assert_same(answer.items, expected.items, len(expected.items), case.epsilon)
        assert answer.tail_computed == (answer.status is Status.OK and request.tail not in (None, own))


@examples(40)
@given(st.data())
def test_a_tail_leaves_the_users_prefix_as_it_is(data):
    case = data.draw(cases(kv_cache_dtypes=KV_CACHE_DTYPES))
    engine = case.engine()
    append(engine, "a", data.draw(case.histories(max_events=8)))
    before = engine.cache.get("a")
    held = None if before is None else [part.copy() for part in map(np.asarray, content(engine, before))]
    free = engine.cache.pool.num_free
    requests = [
        RecommendRequest(str(i), "a", tail=data.draw(case.tails())) for i in range(data.draw(st.integers(1, 3)))
    ]
    engine.answer([(request, engine.history.view("a")) for request in requests])
    engine.check_integrity()
    assert engine.cache.get("a") is before
    assert engine.cache.pool.num_free == free
    if held is not None:
        for then, now in zip(held, content(engine, before), strict=True):
            np.testing.assert_array_equal(then, np.asarray(now))


def page_bytes(case) -> int:
    return case.engine().cache.pool.bytes_per_page
