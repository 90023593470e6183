"""Graphs captured before they are needed."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count, takewhile

import numpy as np
import torch

from xgr_stream.cache import PrefixCache, UserPrefix
from xgr_stream.catalog import ResolvedFilter
from xgr_stream.config import EngineConfig
from xgr_stream.engine.append import Append
from xgr_stream.engine.decode import BeamDecoder
from xgr_stream.engine.legality import LegalityTables
from xgr_stream.engine.work import Work
from xgr_stream.model import ItemTokens

PREPARED_USERS = 64
"""Users in one batch of appends whose graph is captured before it is needed, at most."""


def prepare_appends(
    work: Work, cache: PrefixCache, tokens: ItemTokens, config: EngineConfig, window_events: int
) -> None:
    """Capture an append of one event for 1, 2, 4, ... users, and of a whole chunk of a prefill."""
    chunk = min(config.max_batch_tokens, tokens.context_tokens(window_events))
    event = np.zeros(min(chunk, tokens.max_event_tokens + len(tokens.tail)), np.int64)
    draft = cache.draft(None, chunk)
    try:
        for appender in (work.appender, work.request_appender):
            for users in _powers(max(1, min(PREPARED_USERS, config.max_batch_tokens // len(event)))):
                appender.run([Append(draft, 0, event)] * users)
            appender.run([Append(draft, 0, np.zeros(chunk, np.int64))])
        torch.cuda.synchronize()
    finally:
        cache.abandon(draft)


def prepare_decodes(
    decoder: BeamDecoder,
    cache: PrefixCache,
    config: EngineConfig,
    unfiltered: ResolvedFilter,
    legality: LegalityTables,
) -> None:
    """Capture a decode of 1, 2, 4, ... requests of the default beam width."""
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
        for requests in _powers(config.max_batch_rows // config.beam_width):
            widths = [config.beam_width] * requests
            decoder.begin([prefix] * requests, widths, [unfiltered] * requests, legality).wait()
    finally:
        cache.abandon(draft)


def _powers(most: int) -> Iterator[int]:
    """1, 2, 4, ... up to `most`."""
    return takewhile(lambda power: power <= most, (1 << i for i in count()))
