"""What the cache knows about one user: an immutable snapshot."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from xgr_stream.cache.references import IntArray

AHEAD = "\udc00"
"""Behind a user's id; nobody's id ends in it, since it can't be encoded."""


def ahead_of(user_id: str) -> str:
    """The name under which the user's next window is kept, which is computed before they are in it."""
    return user_id + AHEAD


@dataclass(frozen=True, slots=True, eq=False)
class UserPrefix:
    """The prefix of one user: where its keys and values are, and what they were computed from.

    The keys and values of the tokens before `num_tokens` never change while anyone holds the pages. Those of the
    tail behind them are overwritten by the next append to the same user.
    """

    user_id: str
    key: str
    """What tokenised and computed it: model and catalog structure."""
    window_start: int
    """Number of the first event in context."""
    event_count: int
    """The user's events that it covers, those before `window_start` included."""
    event_offset: int
    """Offset of the last event covered; -1 if none came from a topic."""
    life: int
    """The history's, as in its view: events are numbered from there."""
    items: IntArray
    """Interned items of all events that the history kept at `event_count`, those without tokens and those before the
    window too; the last `event_count - window_start` are in context. [events kept]"""
    revision: int
    """Of what the items' tokens were, when they were read."""
    num_tokens: int
    """Tokens in context, without the tail."""
    kv_tokens: int
    """Tokens in context with the tail: what a beam attends to."""
    pages: IntArray
    """[ceil(kv_tokens / page_size)]"""
    hidden_slot: int
    """Row of `PrefixCache.hidden` that holds the last token's hidden state."""
    last_token: int
    """The token before the tail."""

    @property
    def context_items(self) -> IntArray:
        """Interned items of the events in context. [event_count - window_start]"""
        return self.items[len(self.items) - (self.event_count - self.window_start) :]


class Draft(NamedTuple):
    """Memory for a prefix that is being computed: held by whoever drafted it, until published or abandoned."""

    pages: IntArray
    num_shared: int
    """So many of the pages, the first, are those of the prefix that it begins like, and held by that alone: an append,
    which a request may be waiting for, need not count one more holder before it is under way."""
    hidden_slot: int
    base: UserPrefix | None
    """The prefix that it begins like."""
