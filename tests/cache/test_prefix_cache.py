import numpy as np
import pytest
import torch

from xgr_stream.cache import (
    DecayedRate,
    Draft,
    GreedyDual,
    LeastRecentlyUsed,
    PagePool,
    PrefixCache,
    UserPrefix,
    Worth,
)
from xgr_stream.errors import EngineError


def make_cache(num_pages: int = 8, worth: Worth | None = None) -> PrefixCache:
    pool = PagePool(
        layers=1,
        num_pages=num_pages,
        page_size=4,
        kv_heads=1,
        head_dim=2,
        dtype=torch.float32,
        device=torch.device("cpu"),
    )
    return PrefixCache(
        pool, hidden_size=3, worth=worth or DecayedRate(4), restore_cost=lambda tokens, copied: float(tokens * tokens)
    )


def publish(cache: PrefixCache, user_id: str, tokens: int, base: UserPrefix | None = None) -> UserPrefix:
    with cache.pinned([] if base is None else [base]):
        draft = cache.draft(base, tokens)
        prefix = make_prefix(user_id, tokens, draft)
        cache.publish(prefix, draft)
    cache.touch(user_id)
    return prefix


def make_prefix(user_id: str, tokens: int, draft: Draft) -> UserPrefix:
    return UserPrefix(
        user_id=user_id,
        key="key",
        window_start=0,
        event_count=tokens,
        event_offset=-1,
        life=-1,
        items=np.zeros(tokens, np.int32),
        revision=0,
        num_tokens=tokens,
        kv_tokens=tokens,
        pages=draft.pages,
        hidden_slot=draft.hidden_slot,
        last_token=0,
    )


WORTHS = pytest.mark.parametrize("worth", [lambda: DecayedRate(4), GreedyDual, LeastRecentlyUsed])


def test_an_append_shares_the_pages_of_its_base():
    cache = make_cache()
    first = publish(cache, "a", 6)
    second = publish(cache, "a", 9, base=first)
    assert second.pages[:2].tolist() == first.pages.tolist()
    assert cache.pool.num_free == 5
    cache.check_integrity()


@pytest.mark.parametrize("others", [0, 1, 2])
@pytest.mark.parametrize(("before", "after"), [(6, 9), (6, 8), (8, 9), (9, 6)])  # the last: its tail has become shorter
def test_an_append_takes_its_base_s_pages_over_from_all_but_other_pins(before: int, after: int, others: int) -> None:
    """Nothing is counted then."""
    cache = make_cache()
    first = publish(cache, "a", before)
    counted: list[int] = []
    retain = cache.pool.retain
    cache.pool.retain = lambda pages: (counted.append(len(pages)), retain(pages))
    with cache.pinned([first] * others):
        second = publish(cache, "a", after, base=first)
        assert bool(counted) == (others > 0 or after < before)
        cache.check_integrity()
        held = {*second.pages.tolist(), *(first.pages.tolist() if others else ())}
        assert cache.pool.num_free == 8 - len(held)
    cache.check_integrity()
    assert cache.pool.num_free == 8 - len(second.pages)
    cache.drop(["a"])
    cache.check_integrity()
    assert cache.pool.num_free == 8


@pytest.mark.parametrize("num_tokens", [5, 6, 8])
def test_what_is_written_to_a_fork_leaves_its_base_alone(num_tokens):
    cache = make_cache()
    base = publish(cache, "a", 10)
    tokens = [(base.pages[token // 4], token % 4) for token in range(10)]
    for token, (page, slot) in enumerate(tokens):
        cache.pool.k[:, page, :, slot], cache.pool.v[:, page, :, slot] = token + 1, -token - 1
    with cache.pinned([base]):
        fork = cache.fork(base, num_tokens, kv_tokens=11)
        assert cache.pool.num_free == 8 - len(base.pages) - (3 - num_tokens // 4)
        for token in range(11):
            page, slot = fork.pages[token // 4], token % 4
            if token < num_tokens:
                assert (cache.pool.k[:, page, :, slot] == token + 1).all()
                assert (cache.pool.v[:, page, :, slot] == -token - 1).all()
            else:
                cache.pool.k[:, page, :, slot] = cache.pool.v[:, page, :, slot] = float("nan")
        cache.abandon(fork)
    for token, (page, slot) in enumerate(tokens):
        assert (cache.pool.k[:, page, :, slot] == token + 1).all()
        assert (cache.pool.v[:, page, :, slot] == -token - 1).all()
    assert cache.pool.num_free == 8 - len(base.pages)
    cache.check_integrity()


def test_a_user_who_costs_less_to_compute_again_goes_first():
    cache = make_cache(num_pages=4)
    publish(cache, "long", 8)
    publish(cache, "short", 3)
    publish(cache, "new", 8)
    assert "short" not in cache
    assert "long" in cache
    assert cache.num_evicted == 1
    cache.check_integrity()


@WORTHS
def test_of_users_who_cost_the_same_the_one_seen_longest_ago_goes_first(worth):
    cache = make_cache(num_pages=3, worth=worth())
    for user_id in "abc":
        publish(cache, user_id, 4)
    publish(cache, "d", 4)  # evicts a, which sets the level that the others are seen at
    cache.touch("b")
    publish(cache, "e", 4)
    assert "b" in cache
    assert "c" not in cache
    cache.check_integrity()


@WORTHS
def test_a_costly_user_who_is_never_seen_again_goes_in_the_end(worth):
    cache = make_cache(num_pages=3, worth=worth())
    publish(cache, "costly", 8)
    for i in range(12):
        publish(cache, f"user-{i}", 4)
    assert "costly" not in cache
    cache.check_integrity()


def test_a_pinned_user_is_not_evicted():
    cache = make_cache(num_pages=2)
    prefix = publish(cache, "a", 3)
    with cache.pinned([prefix]):
        publish(cache, "b", 4)
        with pytest.raises(EngineError, match="pages asked for"):
            cache.draft(None, 8)
        assert "a" in cache
    publish(cache, "c", 8)
    assert "a" not in cache
    cache.check_integrity()


def under_way(cache: PrefixCache) -> tuple[list[UserPrefix], list[int]]:
    """Prefixes that are pinned until the cache settles, and how many were whenever it did."""
    pinned: list[UserPrefix] = []
    settled: list[int] = []

    def settle() -> None:
        settled.append(len(pinned))
        while pinned:
            cache.unpin(pinned.pop())

    cache.settle = settle
    return pinned, settled


def test_work_under_way_is_waited_for_when_its_pages_are_needed_and_not_before():
    cache = make_cache(num_pages=4)
    pinned, settled = under_way(cache)
    for user_id, tokens in (("a", 8), ("b", 4), ("c", 4)):
        pinned.append(publish(cache, user_id, tokens))
        cache.pin(pinned[-1])
    assert not settled
    publish(cache, "d", 16)
    assert settled == [3]
    assert "d" in cache
    assert len(cache) == 1
    cache.check_integrity()


def test_pins_of_work_that_is_done_end_before_anybody_else_is_turned_out_and_nothing_is_waited_for():
    cache = make_cache(num_pages=4)
    _, settled = under_way(cache)
    old = publish(cache, "a", 8)
    cache.pin(old)
    publish(cache, "a", 4)  # anew: what it had is held by the pin alone
    publish(cache, "b", 4)
    cache.reap = lambda: cache.unpin(old)
    publish(cache, "c", 8)
    assert ("a" in cache, "b" in cache, settled) == (True, True, [])
    cache.check_integrity()


def test_work_under_way_is_waited_for_when_its_slots_are_needed_and_not_before():
    cache = make_cache(num_pages=4)  # and twice as many slots
    pinned, settled = under_way(cache)
    prefix = None
    for _ in range(8):  # snapshots of one page, each with a slot of its own
        prefix = publish(cache, "a", 3, base=prefix)
        pinned.append(prefix)
        cache.pin(prefix)
    assert not settled
    publish(cache, "a", 3, base=prefix)
    assert settled == [8]
    cache.check_integrity()


def test_memory_of_a_dropped_user_is_kept_while_a_batch_uses_it():
    cache = make_cache(num_pages=2)
    prefix = publish(cache, "a", 8)
    with cache.pinned([prefix]):
        cache.drop(["a"])
        assert "a" not in cache
        assert cache.pool.num_free == 0
        cache.check_integrity()
    assert cache.pool.num_free == 2
    cache.check_integrity()


@pytest.mark.parametrize("where", ["concatenate", "slot", "pages", "copy"])
def test_a_draft_that_fails_half_way_leaves_nothing(monkeypatch, where):
    def fails(*_: object) -> None:
        raise MemoryError

    cache = make_cache()
    base = publish(cache, "a", 10)
    owner, name = {
        "concatenate": (np, "concatenate"),
        "slot": (cache._slots, "allocate"),
        "pages": (cache.pool, "allocate"),
        "copy": (cache.pool, "copy"),
    }[where]
    with cache.pinned([base]), monkeypatch.context() as patch:
        patch.setattr(owner, name, fails)
        with pytest.raises(MemoryError):
            cache.fork(base, 5, 12)
    cache.check_integrity()


def test_an_abandoned_draft_gives_everything_back():
    cache = make_cache()
    base = publish(cache, "a", 6)
    with cache.pinned([base]):
        draft = cache.draft(base, 12)
        with pytest.raises(EngineError, match="1 drafts"):
            cache.check_integrity()
        cache.abandon(draft)
        cache.check_integrity()
    assert cache.pool.num_free == 6


@pytest.mark.parametrize("published", [True, False])
def test_a_draft_whose_base_is_dropped_meanwhile_keeps_the_pages_that_they_share(published):
    cache = make_cache()
    base = publish(cache, "a", 6)
    with cache.pinned([base]):
        draft = cache.draft(base, 9)
        cache.drop(["a"])
        assert cache.pool.num_free == 8 - 3
        if published:
            cache.publish(make_prefix("a", 9, draft), draft)
        else:
            cache.abandon(draft)
    assert cache.pool.num_free == (8 - 3 if published else 8)
    cache.check_integrity()


def test_users_that_come_and_go_leave_nothing_behind():
    cache = make_cache()
    for i in range(500):
        publish(cache, f"user-{i}", 1 + i % 7)
        if i % 3 == 0:
            cache.drop([f"user-{i}", "nobody"])
    cache.check_integrity()
    cache.drop([f"user-{i}" for i in range(500)])
    assert len(cache) == 0
    assert cache.bytes_used == 0
    assert cache.bytes_budget == 8 * cache.pool.bytes_per_page
    cache.check_integrity()


def test_unwritten_pages_hold_zeros_in_any_dtype():
    shape = {"layers": 2, "num_pages": 3, "page_size": 4, "kv_heads": 2, "head_dim": 2, "device": torch.device("cpu")}
    for dtype in (torch.float32, torch.bfloat16, torch.float8_e4m3fn):
        scales = torch.ones(2, 2, 2) if dtype == torch.float8_e4m3fn else None
        pool = PagePool(**shape, dtype=dtype, scales=scales)
        assert pool.k.dtype == dtype
        assert not pool.k.float().any()
        assert pool.bytes_per_page * 3 == pool.k.nbytes + pool.v.nbytes
        assert pool.pages_for(8) == 2
        assert np.array_equal(np.sort(pool.allocate(3)), np.arange(3))
        assert len(pool.scales) == 2
        pool.k.view(torch.uint8)[:, 1] = 56
        pool.copy(1, 2)
        assert torch.equal(pool.k[:, 2].float(), pool.k[:, 1].float())
        assert pool.k[:, 2].float().all()
        with pytest.raises(EngineError, match="scales must be given for pages in FP8 alone"):
            PagePool(**shape, dtype=dtype, scales=torch.ones(2, 2, 2) if scales is None else None)
