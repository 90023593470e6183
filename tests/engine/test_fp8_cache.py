"""The KV cache in FP8. That it breaks no invariant is what tests/property says, of both kinds of cache."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.property.cases import Case
from tests.property.users import append, ask
from xgr_stream.config import CacheConfig, EngineConfig
from xgr_stream.engine import Engine
from xgr_stream.engine.restore_costs import RestoreCosts
from xgr_stream.errors import ConfigError
from xgr_stream.testing import tiny_catalog, tiny_model
from xgr_stream.types import CacheState

CASE = Case((6, 6, 6), 40, 3, True, 4, 16, 16, kv_cache_dtype="fp8")
HISTORY = [(f"item-{n}", "view") for n in (3, 1, 4, 1, 5, 9, 2, 6)]


def test_a_budget_holds_four_times_the_pages_of_float32() -> None:
    engines = [
        Engine.load(tiny_model(), tiny_catalog(), config=EngineConfig(cache=CacheConfig(kv_cache_dtype=dtype)))
        for dtype in ("auto", "fp8")
    ]
    plain, fp8 = (engine.cache.pool for engine in engines)
    assert (plain.bytes_per_page, fp8.bytes_per_page) == (4 * fp8.bytes_per_page, fp8.k.nbytes * 2 // fp8.num_pages)
    assert fp8.num_pages == 4 * plain.num_pages
    assert engines[1].cache.hidden.dtype == torch.float32


def test_answers_differ_a_little_and_their_version_says_so() -> None:
    fp8, plain = CASE.engine(), replace(CASE, kv_cache_dtype="auto").engine()
    for engine in (fp8, plain):
        append(engine, "user", HISTORY)
    assert fp8.version != plain.version
    assert fp8.version.partition(".")[0] == plain.version.partition(".")[0]
    scores = [{i.item_id: i.score for i in engine.recommend("user", 40, beam_width=64)} for engine in (fp8, plain)]
    differences = [abs(score - scores[1][item]) for item, score in scores[0].items()]
    assert scores[0].keys() == scores[1].keys()
    assert 1e-4 < max(differences) < 0.5


def test_bytes_of_every_tier_are_those_of_fp8(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    # By what was measured, computing seems the faster where the machine was busy while something was copied.
    monkeypatch.setattr(RestoreCosts, "prefers_copy", lambda *_: True)
    pages = CASE.engine().cache.pool.pages_for(CASE.model.tokens.context_tokens(CASE.max_events)) + 2
    page = CASE.engine().cache.pool.bytes_per_page
    with_hidden = page + 4 * CASE.model.config.hidden_size
    engine = CASE.engine(
        cache=CacheConfig(
            budget_bytes=2 * pages * page,
            page_size=CASE.page_size,
            kv_cache_dtype="fp8",
            host_bytes=pages * with_hidden,
            file_bytes=4 * pages * with_hidden,
            file_directory=str(tmp_path),
        )
    )
    for user in ("a", "b", "c"):
        append(engine, user, HISTORY)
        engine.check_integrity()  # waits for the file, which may be slow: what is not written yet makes no room
        engine.demote([user])
        engine.check_integrity()
    held = engine.bytes_of("c")
    own = engine.cache.pool.pages_for(engine.cache.host.get("c").prefix.kv_tokens)
    assert (held.device, held.host) == (0, own * with_hidden)
    assert engine.stats().tiers.file_written
    for _ in range(10):  # at first it may only make room
        if engine.cache.host.get("a") is None:
            engine.expect([engine.history.view("a")])
            engine.check_integrity()
    (answer,) = ask(engine, ("a", 5, 20))
    assert answer.cache is CacheState.HOST
    fresh = CASE.engine()
    append(fresh, "a", HISTORY)
    assert answer.items == ask(fresh, ("a", 5, 20))[0].items


def test_other_dtypes_are_refused() -> None:
    with pytest.raises(ConfigError, match="kv_cache_dtype must be 'auto' or 'fp8', not 'int8'"):
        CacheConfig(kv_cache_dtype="int8")  # type: ignore[arg-type]


def test_a_card_that_can_not_read_fp8_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from xgr_stream.engine import sizing

    class Decoder:
        device = torch.device("cuda:0")

    class Model:
        decoder = Decoder()

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    with pytest.raises(
        ConfigError, match=r"cache\.kv_cache_dtype must be 'auto' on cuda:0: fp8 needs compute capability"
    ):
        sizing.page_dtype(Model(), CacheConfig(kv_cache_dtype="fp8"))  # type: ignore[arg-type]
