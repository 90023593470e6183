"""Bringing users' cached prefixes up to their history."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from xgr_stream.cache import Draft, HostCopy, PrefixCache, UserPrefix
from xgr_stream.engine.append import Append, Appender
from xgr_stream.engine.context import ContextReader, TokenArray
from xgr_stream.engine.restore_costs import RestoreCosts
from xgr_stream.history import HistoryView
from xgr_stream.types import CacheState


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """What it takes to bring one user up to a view. Holds until the cache changes."""

    view: HistoryView
    state: CacheState
    """How the user was found."""
    base: UserPrefix | None
    """The prefix to go on from. With a `copy` it is in host memory and to be brought from there first."""
    window_start: int
    tokens: TokenArray
    """What is to be computed behind the base, without the tail."""
    num_tokens: int
    """Tokens in context afterwards, without the tail."""
    copy: HostCopy | None = None
    """Of the base, in host memory."""
    declined: bool = False
    """Whether there was a copy and computing is thought to be faster."""

    @property
    def user_id(self) -> str:
        return self.view.user_id

    @property
    def kept_items(self) -> NDArray[np.int32]:
        """Interned items of what the history keeps at the event that the prefix will cover last."""
        base, view = self.base, self.view
        return base.items if base is not None and base.event_count > view.event_count else view.items


class PrefixBuilder:
    """Plans and runs appends and prefills for users whose contexts it reads with one tokeniser."""

    def __init__(self, cache: PrefixCache, reader: ContextReader, key: str, costs: RestoreCosts) -> None:
        """`key` names what tokenises and computes; prefixes under another key are computed anew, and so are those
        that hold an item whose semantic ID has changed."""
        self._cache = cache
        self._reader = reader
        self._key = key
        self._costs = costs

    def plan(self, view: HistoryView) -> Plan | None:
        """How to bring a user up to `view`; None if nothing in their context is known to the catalog. A prefix that
        is ahead of the view is taken as it is."""
        prefix, copy = self._found(view)
        declined = copy is not None and not self._costs.prefers_copy(copy.prefix.num_tokens)
        if declined:
            prefix = copy = None
        if prefix is not None and prefix.event_count >= view.event_count:
            nothing = np.empty(0, dtype=np.int64)
            state = CacheState.WARM if copy is None else CacheState.HOST
            return Plan(view, state, prefix, prefix.window_start, nothing, prefix.num_tokens, copy)
        start = self._reader.window_start(view)
        if prefix is not None and prefix.window_start == start:
            tokens = self._reader.event_tokens(view, prefix.event_count)
            state = CacheState.APPENDED if len(tokens) else CacheState.WARM
            state = state if copy is None else CacheState.HOST
            return Plan(view, state, prefix, start, tokens, prefix.num_tokens + len(tokens), copy)
        events = self._reader.event_tokens(view, start)
        if not len(events):
            return None
        tokens = np.concatenate((self._reader.prompt, events))
        return Plan(view, CacheState.COLD, None, start, tokens, len(tokens), declined=declined)

    def copy_of(self, view: HistoryView) -> HostCopy | None:
        """The copy in host memory that `plan(view)` would go on from."""
        _, copy = self._found(view)
        if copy is None or not self._costs.prefers_copy(copy.prefix.num_tokens):
            return None
        ahead = copy.prefix.event_count >= view.event_count
        return copy if ahead or copy.prefix.window_start == self._reader.window_start(view) else None

    def pages(self, plan: Plan) -> int:
        """Pages of the user's prefix once the plan has run."""
        return self._cache.pool.pages_for(plan.num_tokens + len(self._reader.tail))

    def pending_tokens(self, view: HistoryView) -> int:
        """Tokens that `plan(view)` would have computed, at most, without tokenising them; a copy from host memory
        counts as what could be computed meanwhile. Safe on any thread: what it says may then be out of date."""
        prefix, copy = self._found(view)
        copying = 0
        if copy is not None:
            copying = self._costs.tokens_of_copy(copy.prefix.num_tokens)
            prefix = prefix if self._costs.prefers_copy(copy.prefix.num_tokens) else None
        if prefix is not None and prefix.event_count >= view.event_count:
            return copying
        start = self._reader.window_start(view)
        appends = prefix is not None and prefix.window_start == start
        first = prefix.event_count if prefix is not None and appends else start
        return self._reader.max_tokens(view, first) + (copying if appends else len(self._reader.prompt))

    def run(self, plans: Sequence[Plan], appender: Appender) -> list[UserPrefix]:
        """Carry out the plans of different users, together; `pages` of all of them must not exceed the pool.

        On CUDA the tokens are under way on the appender's lane when this returns. Evicts others. If it raises, these
        users are no longer cached, since an append writes over their tails.
        """
        pending = [plan for plan in plans if len(plan.tokens)]
        if not pending:
            return [self._settled(plan) for plan in plans]
        with self._cache.pinned([plan.base for plan in plans if plan.base is not None]):
            drafts: list[Draft] = []
            try:
                for plan in pending:
                    drafts.append(self._cache.draft(plan.base, plan.num_tokens + len(self._reader.tail)))
                appender.run([self._append(plan, draft) for plan, draft in zip(pending, drafts, strict=True)])
            except BaseException:
                for draft in drafts:
                    self._cache.abandon(draft)
                self._cache.drop(plan.user_id for plan in pending)
                raise
            for plan, draft in zip(pending, drafts, strict=True):
                self._publish(plan, draft)
            return [self._settled(plan) for plan in plans]

    def _found(self, view: HistoryView) -> tuple[UserPrefix | None, HostCopy | None]:
        """The user's prefix, if it can be gone on from: the one on the device, or that of the copy. A prefix that is on
        the device and of no use has no copy that is."""
        prefix, copy = self._cache.get(view.user_id), None
        if prefix is None and self._cache.host is not None:
            copy = self._cache.host.get(view.user_id)
            prefix = None if copy is None else copy.prefix
        if prefix is None or prefix.key != self._key or prefix.life != view.life:
            return None, None
        reader = self._reader
        if prefix.revision == reader.revision or reader.is_current(prefix.context_items, prefix.revision):
            return prefix, copy
        return None, None

    def _append(self, plan: Plan, draft: Draft) -> Append:
        start = 0 if plan.base is None else plan.base.num_tokens
        return Append(draft, start, np.concatenate((plan.tokens, self._reader.tail)))

    def _publish(self, plan: Plan, draft: Draft) -> None:
        self._cache.publish(
            UserPrefix(
                user_id=plan.user_id,
                key=self._key,
                window_start=plan.window_start,
                event_count=plan.view.event_count,
                event_offset=plan.view.last_offset,
                life=plan.view.life,
                items=plan.view.items,
                revision=self._reader.revision,
                num_tokens=plan.num_tokens,
                kv_tokens=plan.num_tokens + len(self._reader.tail),
                pages=draft.pages,
                hidden_slot=draft.hidden_slot,
                last_token=int(plan.tokens[-1]),
            )
        )

    def _settled(self, plan: Plan) -> UserPrefix:
        """The user's prefix after the run, seen just now."""
        prefix = self._cache.touch(plan.user_id)
        if prefix.event_count < plan.view.event_count:
            view = plan.view
            return self._cache.renumber(plan.user_id, view.event_count, view.last_offset, view.items)
        return prefix
