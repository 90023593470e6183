"""Narrow beams equal a plain, obvious beam search that uses full log-softmax and a full sort."""

from hypothesis import given
from hypothesis import strategies as st

from tests.profiles import examples
from tests.property.cases import KV_CACHE_DTYPES, cases
from tests.property.oracle import assert_same
from tests.property.users import ask, record
from xgr_stream.types import Status


@examples(200)
@given(st.data())
def test_narrow_beams_equal_plain_search(data):
    case = data.draw(cases(normalizers=("level", "vocabulary", "legal"), kv_cache_dtypes=KV_CACHE_DTYPES))
    histories = [data.draw(case.histories(max_events=4)) for _ in range(2)]
    item_filter = data.draw(case.filters())
    widths = data.draw(st.tuples(st.integers(1, 9), st.integers(1, 9)))
    engine = case.engine()
    for i, history in enumerate(histories):
        record(engine, f"user-{i}", history)

    responses = ask(engine, *((f"user-{i}", widths[i], widths[i], item_filter) for i in range(2)))
    for history, width, response in zip(histories, widths, responses, strict=True):
        if response.status is Status.OK:
            legal = case.oracle.legal(item_filter, seen=[item for item, _ in history])
            context = case.oracle.context([i for i, _ in history], [a for _, a in history], case.window)
            assert_same(
                response.items, case.oracle.beam_search(context, legal, case.normalizer, width), width, case.epsilon
            )
