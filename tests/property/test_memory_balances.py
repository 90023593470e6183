"""Pages, hidden slots and node masks balance after any sequence of operations, and are free when all is forgotten."""

from hypothesis import given
from hypothesis import strategies as st

from tests.profiles import examples
from tests.property.cases import KV_CACHE_DTYPES, cases
from tests.property.test_answers_do_not_depend_on_company import smallest_budget
from tests.property.users import ask, record
from xgr_stream.types import RecommendRequest

USERS = tuple(f"user-{i}" for i in range(6))


@examples(60)
@given(st.data())
def test_memory_balances(data):
    case = data.draw(cases(kv_cache_dtypes=KV_CACHE_DTYPES))
    engine = case.engine(smallest_budget(case) * data.draw(st.integers(1, 4)))
    users = st.lists(st.sampled_from(USERS), min_size=1, max_size=4)
    items = st.lists(st.sampled_from(case.items["item_id"]), max_size=3)
    known = st.sampled_from(case.items["item_id"])
    operation = st.one_of(
        st.tuples(st.just("append"), st.sampled_from(USERS), case.histories(max_events=5)),
        st.tuples(st.just("ask"), users, case.filters()),
        st.tuples(st.just("ask with a tail"), users, case.tails()),
        st.tuples(st.just("warm"), users, st.none()),
        st.tuples(st.just("forget"), users, st.none()),
        st.tuples(st.just("available"), items, st.booleans()),
    )
    for user in USERS:  # or hypothesis asks, most of the time, for users who have done nothing yet
        record(engine, user, data.draw(st.lists(st.tuples(known, st.none()), min_size=1, max_size=4)))
    for name, subject, detail in data.draw(st.lists(operation, min_size=8, max_size=25)):
        if name == "append":
            record(engine, subject, detail)
        elif name == "ask":
            ask(engine, *((user, 3, 7, detail) for user in subject))
        elif name == "ask with a tail":
            requests = [RecommendRequest(str(i), user, 3, 7, tail=detail) for i, user in enumerate(subject)]
            engine.answer([(request, engine.history.view(request.user_id)) for request in requests])
        elif name == "warm":
            engine.warm([view for user in subject if (view := engine.history.view(user))])
        elif name == "forget":
            engine.forget(subject)
        else:
            engine.catalog.set_available(subject, detail)
        engine.check_integrity()
    engine.forget(USERS)
    engine.check_integrity()
    assert engine.stats().bytes_used == 0
    assert engine.stats().users_warm == 0
    assert engine.cache.pool.num_free == engine.cache.pool.num_pages
