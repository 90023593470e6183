"""The prefix cache under a trace of events and requests, without a model: the cache's own code, and no bytes moved."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch

from xgr_stream.cache import HostArena, HostTier, PagePool, PrefixCache, UserPrefix, Worth
from xgr_stream.engine.restore_costs import RestoreCosts
from xgr_stream.engine.work import RESERVE

PAGE_TOKENS = 64
BATCH = 1 << 16


@dataclass(frozen=True, slots=True)
class Costs:
    """What was measured of one shape, at one length of contexts."""

    tokens: int
    bytes_per_token: int
    warm_ms: float
    cold_ms: float
    copy_bytes_per_s: float

    @property
    def copy_ms(self) -> float:
        """Of a whole context."""
        return self.tokens * self.bytes_per_token / self.copy_bytes_per_s * 1e3


@dataclass(slots=True)
class Served:
    """Requests by how they found their users."""

    warm: int = 0
    host: int = 0
    cold: int = 0
    ahead: int = 0
    """Copies brought back by events."""
    demoted: int = 0

    def figures(self, costs: Costs) -> dict[str, object]:
        """Shares of the requests, and what one takes of the device on average; a copy that a request waits for counts
        as if nothing ran beside it."""
        requests = self.warm + self.host + self.cold
        gpu_ms = self.warm * costs.warm_ms + self.host * (costs.warm_ms + costs.copy_ms) + self.cold * costs.cold_ms
        return {
            "warm_share": self.warm / requests,
            "host_share": self.host / requests,
            "cold_share": self.cold / requests,
            "gpu_ms": gpu_ms / requests,
            "ahead": self.ahead / requests,
            "demoted": self.demoted / requests,
            "copied_ms": (self.ahead + self.host + self.demoted) * costs.copy_ms / requests,
        }


class Simulation:
    """The cache as it is, over a pool of as many pages as the real one and next to no bytes."""

    def __init__(self, costs: Costs, worth: Worth, pages: int, host_pages: int) -> None:
        pool = PagePool(
            layers=1,
            num_pages=pages,
            page_size=PAGE_TOKENS,
            kv_heads=1,
            head_dim=1,
            dtype=torch.float16,
            device=torch.device("cpu"),
        )
        self._costs = costs
        self._restoring = RestoreCosts(float, costs.bytes_per_token)
        self._restoring.computed([costs.tokens], (costs.cold_ms - costs.warm_ms) / 1e3)
        self._restoring.copied(costs.tokens * costs.bytes_per_token, costs.copy_ms / 1e3)
        self.cache = PrefixCache(pool, 1, worth=worth, restore_cost=self._restoring.restore)
        if host_pages:
            arena = HostArena(pool, self.cache.hidden, host_pages)
            self.cache.host = HostTier(arena, worth, self._restoring.rebuild)
        own = pool.pages_for(costs.tokens)
        self._reserve = min(pages // 2, max(own, pages // RESERVE))
        self.served = Served()

    def run(self, trace: Iterator[tuple[str, bool]], warm_up: int) -> Served:
        """Everything in the trace, (user, whether it is a request); what the first `warm_up` bring is not counted."""
        for place, (user_id, asks) in enumerate(trace):
            if place == warm_up:
                self.served = Served()
            if asks:
                self.request(user_id)
            else:
                self.event(user_id)
        self.cache.check_integrity()
        return self.served

    def request(self, user_id: str) -> None:
        """As the engine serves it."""
        cache, served = self.cache, self.served
        copy = None if cache.host is None or user_id in cache else cache.host.get(user_id)
        if user_id in cache:
            served.warm += 1
        elif copy is not None and self._restoring.prefers_copy(copy.prefix.num_tokens):
            served.host += 1
            self._publish(user_id, restored=True)
        else:
            served.cold += 1
            self._publish(user_id)
        cache.touch(user_id)
        self._tend()

    def event(self, user_id: str) -> None:
        """As `Engine.expect` and `Engine.warm` take it; a full cache prefills nobody ahead."""
        cache, host = self.cache, self.cache.host
        if user_id in cache:
            cache.touch(user_id)
            return
        cache.worth.seen(user_id)
        if host is None:
            return
        host.touch(user_id)
        tokens = self._costs.tokens
        if host.get(user_id) is not None and cache.would_keep(user_id, tokens, tokens):
            self.served.ahead += 1
            self._publish(user_id, restored=True)
            self._tend()

    def _publish(self, user_id: str, *, restored: bool = False) -> None:
        tokens = self._costs.tokens
        draft = self.cache.draft(None, tokens)
        prefix = replace(_PREFIX, user_id=user_id, num_tokens=tokens, kv_tokens=tokens)
        prefix = replace(prefix, pages=draft.pages, hidden_slot=draft.hidden_slot)
        self.cache.publish(prefix, draft, restored=restored)

    def _tend(self) -> None:
        for demotion in self.cache.copies_ahead(self._reserve, self._restoring.prefers_copy):
            if self.cache.host is not None:
                self.cache.host.end(demotion, done=True)
            self.served.demoted += 1


def trace(
    *, users: int, requests: int, events: int, exponent: float, sessions: int, seed: int
) -> Iterator[tuple[str, bool]]:
    """(user, whether it is a request), users by Zipf's law, `events` events for each request.

    With `sessions`, a user who comes has `events` events and then a request, while so many others do the same; else
    each event and each request is of a user drawn anew, and says nothing of what comes next.
    """
    random = np.random.default_rng(seed)
    shares = np.cumsum(np.arange(1, users + 1, dtype=np.float64) ** -exponent)
    shares /= shares[-1]

    def draws() -> Iterator[int]:
        while True:
            yield from np.searchsorted(shares, random.random(BATCH)).tolist()

    drawn = draws()
    steps = requests * (events + 1)
    if not sessions:
        for at in range(0, steps, BATCH):
            asks = random.random(min(BATCH, steps - at)) * (events + 1) < 1
            for asks_now in asks.tolist():
                yield f"user-{next(drawn)}", asks_now
        return
    open_sessions = [[next(drawn), int(random.integers(0, events + 1))] for _ in range(sessions)]
    for at in range(0, steps, BATCH):
        for place in random.integers(0, sessions, min(BATCH, steps - at)).tolist():
            session = open_sessions[place]
            if session[1] < events:
                session[1] += 1
                yield f"user-{session[0]}", False
            else:
                yield f"user-{session[0]}", True
                open_sessions[place] = [next(drawn), 0]


_NOTHING = np.empty(0, np.int32)
_PREFIX = UserPrefix("", "", 0, 1, -1, -1, _NOTHING, 0, 1, 1, _NOTHING, -1, 0)
