from hypothesis import given
from hypothesis import strategies as st

from xgr_stream.engine.shapes import APPEND_SIZES, MOST_USERS, AppendShape, DecodeShape

MOST_TOKENS = max(tokens for _, tokens in APPEND_SIZES)


@given(st.integers(1, 4096), st.integers(0, 4096), st.integers(1, 200))
def test_an_append_fits_into_its_shape_which_was_captured_ahead_if_any_was(users, more_tokens, columns):
    tokens = users + more_tokens
    shape = AppendShape.bucket(users, tokens, columns)
    assert shape.users == shape.wanted >= users
    assert shape.tokens >= tokens
    assert shape.page_columns >= columns
    if users <= MOST_USERS and tokens <= MOST_TOKENS:
        assert (shape.users, shape.tokens) in APPEND_SIZES
        assert not any(users <= most and tokens <= size < shape.tokens for most, size in APPEND_SIZES)
    assert AppendShape.bucket(shape.users, shape.tokens, shape.page_columns) == shape


@given(st.integers(1, 64), st.lists(st.integers(1, 4096), min_size=1, max_size=4), st.integers(1, 200))
def test_a_decode_fits_into_its_shape(requests, rows, columns):
    shape = DecodeShape.bucket(requests, rows, columns)
    assert shape.requests >= requests
    assert all(size >= own for size, own in zip(shape.rows, rows, strict=True))
    assert shape.page_columns >= columns
    assert DecodeShape.bucket(shape.requests, shape.rows, shape.page_columns) == shape
