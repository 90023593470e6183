"""A prefill in chunks on a card, decodes and appends of others between them, against one of all at once."""

from __future__ import annotations

import random

import pytest

from tests.gpu.test_engine import CASES, Draws
from tests.property.oracle import assert_same
from tests.property.users import append, ask, record
from xgr_stream.types import CacheState

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("name", ["plain", "framed"])
@pytest.mark.parametrize("chunk", [1, 5, 64])
def test_equals_a_prefill_of_all_at_once(name: str, chunk: int) -> None:
    case, draws, chance = CASES[name], Draws(CASES[name], 7), random.Random(7)
    engine, whole = (case.engine(8 << 20, device="cuda") for _ in range(2))
    for number in range(6):
        long, other = f"long-{number}", f"other-{number % 2}"
        history, events = draws.history(40), draws.history(2)
        for one in (engine, whole):
            record(one, long, history)
            append(one, other, events)
        view = engine.history.view(long)
        assert view is not None
        for report in engine.prefilling(view, chunk):
            assert report.tokens <= chunk
            if chance.random() < 0.3:
                (found,), (expected,) = (ask(one, (other, 16, 16)) for one in (engine, whole))
                assert_same(found.items, expected.items, 16)
        (found,), (expected,) = (ask(one, (long, 32, 32)) for one in (engine, whole))
        assert (found.cache, expected.cache) == (CacheState.WARM, CacheState.COLD)
        assert_same(found.items, expected.items, 32)
        engine.check_integrity()
