"""With a beam at least as wide as the legal catalog, the result is complete and sound, with every filter."""

from hypothesis import given
from hypothesis import strategies as st

from tests.profiles import examples
from tests.property.cases import KV_CACHE_DTYPES, cases
from tests.property.oracle import assert_same
from tests.property.users import ask, record
from xgr_stream.types import Status

NORMALIZERS = ("level", "vocabulary", "legal")


@examples(100)
@given(st.data())
def test_wide_beams_equal_exhaustive_search(data):
    case = data.draw(cases(normalizers=NORMALIZERS, kv_cache_dtypes=KV_CACHE_DTYPES))
    history = data.draw(case.histories(max_events=4))
    item_filter = data.draw(case.filters())
    away = data.draw(st.lists(st.sampled_from(case.items["item_id"]), max_size=6))
    engine = case.engine()
    engine.catalog.set_available(away, False)
    record(engine, "user", history)
    legal = case.oracle.legal(item_filter, away, [item for item, _ in history])
    width = len(case.items["item_id"])

    (response,) = ask(engine, ("user", width, width, item_filter))
    if not legal:
        assert response.error == "nothing_legal"
    elif response.status is Status.UNKNOWN_USER:
        assert not any(item in case.oracle.sid_of for item, _ in history[case.window.start(len(history)) :])
        assert {r.item_id for r in response.items} == set(legal)
    else:
        context = case.oracle.context([i for i, _ in history], [a for _, a in history], case.window)
        assert_same(response.items, case.oracle.exhaustive(context, legal, case.normalizer), width, case.epsilon)
    engine.check_integrity()


@examples(100)
@given(st.data())
def test_filters_of_one_batch_do_not_mix(data):
    case = data.draw(cases(kv_cache_dtypes=KV_CACHE_DTYPES))
    filters = data.draw(st.lists(case.filters(), min_size=2, max_size=5))
    engine = case.engine()
    record(engine, "user", [("item-0", None)])
    width = len(case.items["item_id"])

    for _ in range(2):  # masks uploaded, then reused
        responses = ask(engine, *(("user", width, width, item_filter) for item_filter in filters))
        for item_filter, response in zip(filters, responses, strict=True):
            assert {r.item_id for r in response.items} == set(case.oracle.legal(item_filter, seen=["item-0"]))
        engine.catalog.set_available(["item-0"], False)
        case.oracle.sid_of.pop("item-0", None)
    engine.check_integrity()
