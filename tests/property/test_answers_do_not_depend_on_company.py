"""A response does not depend on its batch-mates, nor on whether its user was warm, cold or evicted meanwhile."""

from hypothesis import given
from hypothesis import strategies as st

from tests.profiles import examples
from tests.property.cases import KV_CACHE_DTYPES, Case, cases
from tests.property.oracle import assert_same
from tests.property.users import append, ask, record
from xgr_stream.engine import Engine

USERS = tuple(f"user-{i}" for i in range(5))


def smallest_budget(case: Case) -> int:
    """Bytes that hold one user's window and nothing else."""
    probe = case.engine()
    tokens = case.model.tokens.context_tokens(case.max_events)
    return probe.cache.pool.pages_for(tokens) * probe.cache.pool.bytes_per_page


def make(case: Case, histories: dict, budget_bytes: int, *, warm: bool, **settings) -> Engine:
    engine = case.engine(budget_bytes, **settings)
    for user, history in histories.items():
        (append if warm else record)(engine, user, history)
    return engine


@examples(30)
@given(st.data())
def test_answers_do_not_depend_on_company(data):
    case = data.draw(cases(kv_cache_dtypes=KV_CACHE_DTYPES))
    histories = {user: data.draw(case.histories(max_events=8)) for user in USERS}
    requests = data.draw(
        st.lists(
            st.tuples(st.sampled_from(USERS), st.integers(1, 5), st.integers(5, 40), case.filters()),
            min_size=1,
            max_size=8,
        )
    )
    budget = smallest_budget(case)
    engines = [
        make(case, histories, 1 << 20, warm=True),
        make(case, histories, 1 << 20, warm=False, max_batch_rows=1024),
        make(case, histories, budget, warm=True),  # all but the last were evicted, and evict each other
        make(case, histories, budget * 2, warm=False),
    ]
    alone = make(case, histories, 1 << 20, warm=False)
    expected = [ask(alone, request)[0] for request in requests]
    for engine in engines:
        for mine, theirs in zip(ask(engine, *requests), expected, strict=True):
            assert (mine.status, mine.error) == (theirs.status, theirs.error)
            assert (mine.event_count, mine.catalog_version) == (theirs.event_count, theirs.catalog_version)
            assert_same(mine.items, theirs.items, len(theirs.items), case.epsilon)
        engine.check_integrity()
