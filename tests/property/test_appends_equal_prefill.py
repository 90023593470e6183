"""N appends equal one prefill; any interleaving over users equals each user alone."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tests.profiles import examples
from tests.property.cases import KV_CACHE_DTYPES, cases
from tests.property.oracle import assert_same
from tests.property.users import append, ask, record
from xgr_stream.engine import Engine
from xgr_stream.types import CacheState, Status


def last_hidden(engine: Engine, user_id: str) -> np.ndarray:
    prefix = engine.cache.get(user_id)
    return engine.cache.hidden[prefix.hidden_slot].numpy()


@examples(60)
@given(st.data())
def test_n_appends_equal_one_prefill(data):
    case = data.draw(cases(kv_cache_dtypes=KV_CACHE_DTYPES))
    steps = data.draw(st.lists(case.histories(max_events=4), max_size=6))
    history = [event for step in steps for event in step]
    by_steps, at_once = case.engine(), case.engine()
    for step in steps:
        append(by_steps, "user", step)
    record(at_once, "user", history)

    (warm,) = ask(by_steps, ("user", 10, 64))
    (cold,) = ask(at_once, ("user", 10, 64))
    assert warm.status == cold.status
    if cold.status is Status.OK:
        assert warm.cache is CacheState.WARM
        assert cold.cache is CacheState.COLD
        np.testing.assert_allclose(last_hidden(by_steps, "user"), last_hidden(at_once, "user"), atol=case.epsilon)
        assert by_steps.cache.get("user").num_tokens == at_once.cache.get("user").num_tokens
        assert_same(warm.items, cold.items, 10, case.epsilon)
    by_steps.check_integrity()
    at_once.check_integrity()


@examples(100)
@given(st.data())
def test_the_last_hidden_state_is_that_of_a_plain_forward(data):
    case = data.draw(cases(kv_cache_dtypes=KV_CACHE_DTYPES))
    history = data.draw(case.histories(max_events=20))
    engine = case.engine()
    half = len(history) // 2
    append(engine, "user", history[:half])
    append(engine, "user", history[half:])

    context = case.oracle.context([i for i, _ in history], [a for _, a in history], case.window)
    (response,) = ask(engine, ("user", 10, 1024))
    if response.status is Status.OK:
        assert engine.cache.get("user").kv_tokens == len(context)
        expected = case.oracle.exhaustive(context, case.oracle.sid_of, "level")
        assert_same(response.items, expected, 10, case.epsilon)


@examples(50)
@given(st.data())
def test_interleaved_users_equal_each_user_alone(data):
    case = data.draw(cases(kv_cache_dtypes=KV_CACHE_DTYPES))
    users = ["a", "b", "c"]
    rounds = data.draw(st.lists(st.fixed_dictionaries({u: case.histories(max_events=3) for u in users}), max_size=4))
    together = case.engine()
    for step in rounds:
        for user in users:
            record(together, user, step[user])
        together.warm([view for user in users if (view := together.history.view(user))])
    answers = dict(zip(users, ask(together, *((user, 10, 64) for user in users)), strict=True))

    for user in users:
        alone = case.engine()
        record(alone, user, [event for step in rounds for event in step[user]])
        (expected,) = ask(alone, (user, 10, 64))
        assert answers[user].status == expected.status
        assert answers[user].event_count == expected.event_count
        assert_same(answers[user].items, expected.items, 10, case.epsilon)
    together.check_integrity()
