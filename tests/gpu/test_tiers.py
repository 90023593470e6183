"""Host memory and a file behind a card's: copies on streams of their own, against an engine that holds all."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.gpu.test_engine import CASES, Draws
from tests.property.cases import Case
from tests.property.oracle import assert_same
from tests.property.users import append, ask, record
from xgr_stream.cache import HostArena
from xgr_stream.cache.arena import _pin
from xgr_stream.config import CacheConfig
from xgr_stream.engine import Engine, Switches
from xgr_stream.errors import ConfigError
from xgr_stream.types import CacheState, RecommendRequest

pytestmark = pytest.mark.gpu

USERS = tuple(f"user-{i}" for i in range(10))


def tiered(case: Case, directory: Path, *, graphs: bool) -> Engine:
    """The device holds three windows, host memory four, the file six."""
    plain = case.engine(8 << 20, device="cuda")
    pages = plain.cache.pool.pages_for(case.model.tokens.context_tokens(case.max_events)) + 2
    page_bytes = HostArena.bytes_per_page(plain.cache.pool, plain.cache.hidden)
    cache = CacheConfig(
        budget_bytes=3 * pages * plain.cache.pool.bytes_per_page,
        page_size=case.page_size,
        kv_cache_dtype=case.kv_cache_dtype,
        host_bytes=4 * pages * page_bytes,
        file_bytes=6 * pages * page_bytes,
        file_directory=str(directory),
    )
    config = replace(plain.config, cache=cache)
    return Engine(plain.model, plain.catalog, config=config, switches=Switches(graphs=graphs))


@pytest.mark.parametrize("graphs", [True, False])
@pytest.mark.parametrize("name", ["plain", "framed", "fp8"])
def test_any_sequence_over_all_tiers_answers_as_an_engine_that_holds_all(
    tmp_path: Path, name: str, graphs: bool
) -> None:
    case, draws, chance = CASES[name], Draws(CASES[name], 5), random.Random(5)
    engine, roomy = tiered(case, tmp_path, graphs=graphs), case.engine(8 << 20, device="cuda")
    states = set()
    for _ in range(150):
        users = chance.sample(USERS[: chance.choice((4, len(USERS)))], chance.randint(1, 3))
        what = chance.random()
        if what < 0.35:
            for user in users:
                history = draws.history(3)
                for one in (engine, roomy):
                    record(one, user, history)
            views = [engine.history.view(user) for user in users]
            engine.expect(views)
            if what < 0.25:
                engine.warm(views)
        elif what < 0.9:
            requests = [(user, 5, 20) for user in users]
            for found, expected in zip(ask(engine, *requests), ask(roomy, *requests), strict=True):
                assert (found.status, found.error) == (expected.status, expected.error)
                assert_same(found.items, expected.items, 5, case.epsilon)
                states.add(found.cache)
        elif what < 0.95:
            engine.demote(users)
        else:
            engine.forget(users)
        if chance.random() < 0.1:
            engine.check_integrity()
    assert CacheState.HOST in states
    engine.forget(USERS)
    engine.check_integrity()
    stats = engine.stats()
    assert stats.bytes_used == stats.tiers.host_bytes_used == stats.tiers.file_bytes_used == 0


@pytest.mark.parametrize("graphs", [True, False])
@pytest.mark.parametrize("name", ["plain", "fp8"])
def test_a_prefix_comes_back_bit_for_bit(tmp_path: Path, name: str, graphs: bool) -> None:
    case, draws = CASES[name], Draws(CASES[name], 6)
    engine = tiered(case, tmp_path, graphs=graphs)
    user = "user"
    append(engine, user, draws.history(8))
    view = engine.history.view(user)
    requests = {
        "beams": RecommendRequest("r", user, 5, 20),
        "tail": RecommendRequest("r", user, 5, 20, tail=(3, 1)),
        "draws": RecommendRequest("r", user, 5, 20, temperature=1.5, seed=7),
        "scores": RecommendRequest("r", user, candidates=tuple(f"item-{i}" for i in range(9))),
    }
    for request in requests.values():
        (warm,) = engine.answer([(request, view)])
        engine.demote([user])
        (host,) = engine.answer([(request, view)])
        assert host.cache is CacheState.HOST
        assert host.items == warm.items
    engine.check_integrity()


def test_memory_that_can_not_be_pinned_is_named_and_no_other_work_fails_for_it(tmp_path: Path) -> None:
    engine = tiered(CASES["plain"], tmp_path, graphs=False)
    host = engine.cache.host
    assert host is not None
    with pytest.raises(ConfigError, match="must be memory that can be pinned"):
        _pin(host.arena.pages, host.arena)  # it is already
    assert torch.ones(8, device="cuda").sum().item() == 8.0
