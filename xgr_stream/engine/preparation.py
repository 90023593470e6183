"""Graphs captured before they are needed, one at a time."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from xgr_stream.cache import PrefixCache, UserPrefix
from xgr_stream.catalog import ResolvedFilter
from xgr_stream.config import EngineConfig
from xgr_stream.engine.append import Append
from xgr_stream.engine.decode import BeamDecoder
from xgr_stream.engine.legality import LegalityTables
from xgr_stream.engine.shapes import APPEND_SIZES, MANY_USERS, MOST_USERS
from xgr_stream.engine.work import Work
from xgr_stream.model import ItemTokens


def prepare_appends(
    work: Work, cache: PrefixCache, tokens: ItemTokens, config: EngineConfig, window_events: int
) -> Iterator[None]:
    """Capture every size that appends are rounded up to."""
    longest = min(config.max_batch_tokens, tokens.context_tokens(window_events))
    draft = cache.draft(None, longest)
    try:
        for appender, most_users in ((work.appender, MOST_USERS), (work.request_appender, MANY_USERS)):
            for users, size in APPEND_SIZES:
                shortest, longer = divmod(min(size, config.max_batch_tokens), users)
                if users > most_users or not shortest or shortest + bool(longer) > longest:
                    continue
                lengths = [shortest + (user < longer) for user in range(users)]
                appender.run([Append(draft, 0, np.zeros(length, np.int32)) for length in lengths])
                yield
    finally:
        for appender in (work.appender, work.request_appender):
            appender.lane.mark().wait()  # what was begun writes to the draft until it is done
        cache.abandon(draft)


def prepare_decodes(
    work: Work,
    decoder: BeamDecoder,
    cache: PrefixCache,
    config: EngineConfig,
    unfiltered: ResolvedFilter,
    legality: LegalityTables,
) -> Iterator[None]:
    """Capture a decode of every number of requests of the default beam width; where prefixes may come back from host
    memory, another that waits for their layers."""
    lane, layers = work.decode_lane, len(cache.pool.k)
    draft = cache.draft(None, 1)
    prefix = UserPrefix(
        user_id="",
        key="",
        window_start=0,
        event_count=0,
        event_offset=-1,
        num_tokens=1,
        kv_tokens=1,
        pages=draft.pages,
        hidden_slot=draft.hidden_slot,
        last_token=0,
        life=0,
        items=np.empty(0, np.int32),
        revision=0,
    )
    try:
        for requests in range(1, config.max_batch_rows // config.beam_width + 1):
            widths = [config.beam_width] * requests
            for expected in ([], [[lane.mark()] * layers])[: 1 if cache.host is None else 2]:
                lane.expect(expected)
                decoder.begin([prefix] * requests, widths, [unfiltered] * requests, legality).wait()
                yield
    finally:
        cache.abandon(draft)
