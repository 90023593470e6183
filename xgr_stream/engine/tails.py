"""Tails that a request names itself, behind prefixes that were cached with the checkpoint's own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np

from xgr_stream.cache import Draft, PrefixCache, UserPrefix
from xgr_stream.config import WindowConfig
from xgr_stream.engine.append import Append, Appender
from xgr_stream.engine.context import TokenArray
from xgr_stream.errors import InvalidRequest
from xgr_stream.model import Model
from xgr_stream.types import MAX_TAIL_TOKENS


class TailForks:
    """Forks of users' prefixes that end with another tail, for as long as one decode takes.

    The tail's tokens are computed on pages of the fork's own, since the cached tail stays where it is: the user's
    prefix is not changed.
    """

    def __init__(self, model: Model, cache: PrefixCache, appender: Appender, window: WindowConfig) -> None:
        tokens, pool = model.tokens, cache.pool
        self._own = tuple(tokens.tail.tolist())
        self._vocab_size = model.config.vocab_size
        self._cache = cache
        self._appender = appender
        events = len(tokens.prompt) + window.max_events * tokens.max_event_tokens
        spare_positions = model.config.max_positions - events - (tokens.levels - 1)
        self._spare_pages = pool.num_pages - pool.pages_for(events + len(self._own))
        # A fork's first page may be a copy that is full but for one token.
        self._max_tokens = min(MAX_TAIL_TOKENS, spare_positions, (self._spare_pages - 1) * pool.page_size + 1)

    def check(self, tail: Sequence[int] | None) -> TokenArray | None:
        """A request's tail, None if it is the checkpoint's own. Raises `InvalidRequest` for one that can't be
        computed behind a full window, whatever the user's history."""
        if tail is None or tuple(tail) == self._own:
            return None
        for token in tail:
            if token >= self._vocab_size:
                raise InvalidRequest(f"tail must hold token ids below {self._vocab_size}, the vocabulary, not {token}")
        if not self._spare_pages:
            raise InvalidRequest("tail must be the checkpoint's own, since this engine's cache holds one window alone")
        if len(tail) > self._max_tokens:
            raise InvalidRequest(
                f"tail must hold at most {self._max_tokens} tokens on this engine, which has no positions or no cache "
                f"for more behind a full window, not {len(tail)}"
            )
        return np.array(tail, dtype=np.int32)

    def pages(self, tail: TokenArray | None) -> int:
        """Pages that a fork with this tail takes beside the prefix, at most."""
        pool = self._cache.pool
        return 0 if tail is None else pool.pages_for(pool.page_size - 1 + max(len(tail), 1))

    @contextmanager
    def forked(self, prefixes: Sequence[UserPrefix], tails: Sequence[TokenArray | None]) -> Iterator[list[UserPrefix]]:
        """Within, the prefixes with these tails; None keeps the prefix as it is. `prefixes` must be pinned."""
        drafts: list[Draft] = []
        appends: list[Append] = []
        ends: list[UserPrefix] = []
        try:
            for prefix, tail in zip(prefixes, tails, strict=True):
                if tail is None:
                    ends.append(prefix)
                    continue
                # Only the cached tail's last hidden state is kept. So before no tail at all, the last event's last
                # token is computed again.
                start = prefix.num_tokens if len(tail) else prefix.num_tokens - 1
                tokens = tail if len(tail) else np.array([prefix.last_token], dtype=np.int32)
                draft = self._cache.fork(prefix, start, start + len(tokens))
                drafts.append(draft)
                appends.append(Append(draft, start, tokens))
                kv_tokens = start + len(tokens)
                ends.append(replace(prefix, kv_tokens=kv_tokens, pages=draft.pages, hidden_slot=draft.hidden_slot))
            self._appender.run(appends)
        except BaseException:
            self._appender.lane.mark().wait()  # what was begun writes to the drafts until it is done
            for draft in drafts:
                self._cache.abandon(draft)
            raise
        try:
            yield ends
        finally:
            for draft in drafts:
                self._cache.abandon(draft)
