"""Bringing users' cached prefixes up to their history."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from xgr_stream.cache import Draft, HostCopy, PrefixCache, UserPrefix, ahead_of
from xgr_stream.engine.append import Append, Appender
from xgr_stream.engine.context import ContextReader, TokenArray
from xgr_stream.engine.restore_costs import RestoreCosts
from xgr_stream.history import HistoryView
from xgr_stream.types import CacheState

ROOM_AHEAD = 4
"""No next window is computed where the cache has room for fewer prefixes than so many: the user's own might make
room."""

_NOTHING: TokenArray = np.empty(0, np.int32)


class Plan(NamedTuple):
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
    ahead: bool = False
    """It is the user's next window that is computed."""
    counted: bool = False
    """Whether the user's rate has the event already that brought them up to here."""

    @property
    def user_id(self) -> str:
        """Under which name the prefix is kept."""
        return ahead_of(self.view.user_id) if self.ahead else self.view.user_id

    @property
    def touches(self) -> tuple[str, ...]:
        """The names whose prefixes' pages it reads or writes."""
        if self.base is None or self.base.user_id == self.user_id:
            return (self.user_id,)
        return self.user_id, self.base.user_id

    @property
    def kept_items(self) -> NDArray[np.int32]:
        """Interned items of what the history keeps at the event that the prefix will cover last."""
        base, view = self.base, self.view
        return base.items if base is not None and base.event_count > view.event_count else view.items


class _OtherTokens(Exception):
    """What is being computed is no longer the user's context."""


class PrefixBuilder:
    """Plans and runs appends and prefills for users whose contexts it reads with one tokeniser at a time."""

    def __init__(self, cache: PrefixCache, costs: RestoreCosts) -> None:
        self._cache = cache
        self._costs = costs

    def use(self, reader: ContextReader, key: str) -> None:
        """Read contexts with this from now on. `key` names what tokenises and computes; prefixes under another key are
        computed anew, and so are those that hold an item whose semantic ID has changed."""
        self._reader, self._key = reader, key

    def plan(self, view: HistoryView) -> Plan | None:
        """How to bring a user up to `view`; None if nothing in their context is known to the catalog. A prefix that
        is ahead of the view is taken as it is."""
        prefix, copy = self._found(view)
        declined = copy is not None and not self._costs.prefers_copy(copy.prefix.num_tokens)
        if declined:
            prefix = copy = None
        if prefix is not None and prefix.event_count >= view.event_count:
            state = CacheState.WARM if copy is None else CacheState.HOST
            return Plan(view, state, prefix, prefix.window_start, _NOTHING, prefix.num_tokens, copy)
        start = self._reader.window_start(view)
        if prefix is not None and prefix.window_start == start:
            tokens = self._reader.event_tokens(view, prefix.event_count)
            state = CacheState.APPENDED if len(tokens) else CacheState.WARM
            state = state if copy is None else CacheState.HOST
            return Plan(view, state, prefix, start, tokens, prefix.num_tokens + len(tokens), copy)
        ahead = self._ahead(view, start)
        if ahead is not None:
            tokens = self._reader.event_tokens(view, ahead.event_count)
            if len(tokens):
                return Plan(view, CacheState.APPENDED, ahead, start, tokens, ahead.num_tokens + len(tokens))
        return self._anew(view, start, declined=declined)

    def plan_ahead(self, done: Plan) -> Plan | None:
        """How to have the user's next window at hand, if that plan brought them near it: the few events that are still
        to come are then all that is missing when it is theirs."""
        view, reader = done.view, self._reader
        start = reader.window_start(view, reader.events_ahead)
        if start <= done.window_start or self._ahead(view, start) is not None:
            return None
        plan = self._anew(view, start, ahead=True)
        return plan if plan is not None and ROOM_AHEAD * self.pages(plan) <= self._cache.pool.num_pages else None

    def _anew(self, view: HistoryView, start: int, *, declined: bool = False, ahead: bool = False) -> Plan | None:
        events = self._reader.event_tokens(view, start)
        if not len(events):
            return None
        tokens = np.concatenate((self._reader.prompt, events))
        return Plan(view, CacheState.COLD, None, start, tokens, len(tokens), declined=declined, ahead=ahead)

    def copy_of(self, view: HistoryView) -> HostCopy | None:
        """The copy in host memory that `plan(view)` would go on from."""
        _, copy = self._found(view)
        if copy is None or not self._costs.prefers_copy(copy.prefix.num_tokens):
            return None
        return copy if self.is_of_use(copy.prefix, view) else None

    def is_of_use(self, prefix: UserPrefix, view: HistoryView) -> bool:
        """Whether `view` can be gone on to from a copy of this prefix."""
        if not self._is_usable(prefix, view):
            return False
        return prefix.event_count >= view.event_count or prefix.window_start == self._reader.window_start(view)

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
        if prefix is not None and prefix.window_start == start:
            return self._reader.max_tokens(view, prefix.event_count) + copying
        ahead = self._ahead(view, start)
        if ahead is not None:
            return self._reader.max_tokens(view, ahead.event_count)
        return self._reader.max_tokens(view, start) + len(self._reader.prompt)

    def run(self, plans: Sequence[Plan], appender: Appender) -> list[UserPrefix]:
        """Carry out the plans of different users, together; `pages` of all of them must not exceed the pool.

        On CUDA the tokens are under way on the appender's lane when this returns. Evicts others. If it raises, these
        users are no longer cached, since an append writes over their tails.
        """
        pending = [plan for plan in plans if len(plan.tokens)]
        if not pending:
            return [self._up_to_date(plan) for plan in plans]
        with self._cache.pinned([plan.base for plan in plans if plan.base is not None]):
            drafts: list[Draft] = []
            published = 0
            try:
                for plan in pending:
                    drafts.append(self._cache.draft(plan.base, plan.num_tokens + len(self._reader.tail)))
                appender.run([self._append(plan, draft) for plan, draft in zip(pending, drafts, strict=True)])
                for plan, draft in zip(pending, drafts, strict=True):
                    self._publish(plan, draft, self._reader.revision)
                    published += 1
            except BaseException:
                appender.lane.mark().wait()  # what was begun writes to the drafts until it is done
                for draft in drafts[published:]:
                    self._cache.abandon(draft)
                self._cache.drop(plan.user_id for plan in pending)
                raise
            for plan in pending:
                if plan.base is not None and plan.base.user_id != plan.user_id:  # the next window, which now is theirs
                    self._cache.drop([plan.base.user_id])
            return [self._up_to_date(plan) for plan in plans]

    def run_in_chunks(
        self, plan: Plan, appender: Appender, chunk_tokens: int
    ) -> Generator[tuple[int, int], None, None]:
        """Carry out the plan of one user who has nothing to go on from, in forwards of at most so many tokens, one for
        each step: how many it has, and how many are left. The prefix is there with the last. Anything may happen in
        between, and who closes the generator gives up what was computed; so does a catalog that gives the context
        other tokens, with which the steps end."""
        read_by = self._key, self._reader.revision
        draft = self._cache.draft(None, plan.num_tokens + len(self._reader.tail))
        try:
            append = self._append(plan, draft)
            left = len(append.tokens)
            for tokens in appender.chunks(append, chunk_tokens):
                left -= tokens
                if left:
                    yield tokens, left
                    if (self._key, self._reader.revision) != read_by:
                        if not self._still_gives(plan):
                            raise _OtherTokens
                        read_by = self._key, self._reader.revision
            other = self._cache.get(plan.user_id)
            if other is not None and other.event_count >= plan.view.event_count and self._is_usable(other, plan.view):
                appender.lane.mark().wait()
                self._cache.abandon(draft)
            else:
                self._publish(plan, draft, self._reader.revision)
        except BaseException as error:
            appender.lane.mark().wait()  # what was begun writes to the draft until it is done
            self._cache.abandon(draft)
            if isinstance(error, _OtherTokens):
                return
            raise
        self._cache.touch(plan.user_id, counted=plan.counted)
        yield tokens, 0

    def _still_gives(self, plan: Plan) -> bool:
        """Whether the plan, which begins with nothing, would have these tokens now."""
        now = self._anew(plan.view, plan.window_start)
        return now is not None and np.array_equal(now.tokens, plan.tokens)

    def _found(self, view: HistoryView) -> tuple[UserPrefix | None, HostCopy | None]:
        """The user's prefix, if it can be gone on from: the one on the device, or that of the copy. A prefix that is on
        the device and of no use has no copy that is."""
        prefix, copy = self._cache.get(view.user_id), None
        if prefix is None and self._cache.host is not None:
            copy = self._cache.host.get(view.user_id)
            prefix = None if copy is None else copy.prefix
        return (prefix, copy) if prefix is not None and self._is_usable(prefix, view) else (None, None)

    def _ahead(self, view: HistoryView, start: int) -> UserPrefix | None:
        """The prefix of a window that begins at `start`, computed before it was the user's."""
        prefix = self._cache.get(ahead_of(view.user_id))
        if prefix is None or prefix.window_start != start or prefix.event_count > view.event_count:
            return None
        return prefix if self._is_usable(prefix, view) else None

    def _is_usable(self, prefix: UserPrefix, view: HistoryView) -> bool:
        if prefix.key != self._key or prefix.life != view.life:
            return False
        reader = self._reader
        return prefix.revision == reader.revision or reader.is_current(prefix.context_items, prefix.revision)

    def _append(self, plan: Plan, draft: Draft) -> Append:
        start = 0 if plan.base is None else plan.base.num_tokens
        tail = self._reader.tail
        return Append(draft, start, np.concatenate((plan.tokens, tail)) if len(tail) else plan.tokens)

    def _publish(self, plan: Plan, draft: Draft, revision: int) -> None:
        self._cache.publish(
            UserPrefix(
                user_id=plan.user_id,
                key=self._key,
                window_start=plan.window_start,
                event_count=plan.view.event_count,
                event_offset=plan.view.last_offset,
                life=plan.view.life,
                items=plan.view.items,
                revision=revision,
                num_tokens=plan.num_tokens,
                kv_tokens=plan.num_tokens + len(self._reader.tail),
                pages=draft.pages,
                hidden_slot=draft.hidden_slot,
                last_token=int(plan.tokens[-1]),
            ),
            draft,
        )

    def seen(self, plans: Iterable[Plan]) -> None:
        """The users of plans that were carried out were seen just now."""
        for plan in plans:
            self._cache.touch(plan.user_id, counted=plan.counted)

    def _up_to_date(self, plan: Plan) -> UserPrefix:
        """The user's prefix after the run."""
        prefix = self._cache[plan.user_id]
        if prefix.event_count < plan.view.event_count:
            view = plan.view
            return self._cache.renumber(plan.user_id, view.event_count, view.last_offset, view.items)
        return prefix
