"""Bringing users to the device ahead of their requests, and turning them out again."""

from __future__ import annotations

import logging
from collections import OrderedDict, deque
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from time import perf_counter

import torch

from xgr_stream.cache import PrefixCache
from xgr_stream.engine.batches import newest
from xgr_stream.engine.lanes import Mark
from xgr_stream.engine.prefixes import Plan, PrefixBuilder
from xgr_stream.engine.work import Work
from xgr_stream.errors import is_out_of_memory
from xgr_stream.history import HistoryView

logger = logging.getLogger(__name__)

REMEMBERED = 1 << 16
"""Users whose last event is known to be in their rate, at most; of another it may count twice."""


@dataclass(frozen=True, slots=True)
class WarmReport:
    """What `Engine.warm` did."""

    users: int
    """Users whose prefix took something to be up to their view: tokens, or a copy from a lower tier."""
    tokens: int
    """Tokens computed for them."""
    prepared_s: float
    """That the host took before the device could begin; 0 of a chunk, whose `seconds` have it."""
    begun: Mark
    ended: Mark

    @property
    def seconds(self) -> float | None:
        """That the device took; None while it is still at it."""
        return self.ended.ms_since(self.begun) / 1e3 if self.ended.done() else None


class Warming:
    """What nobody waits for yet, as `Engine` has it: see there for what each call does."""

    def __init__(self, cache: PrefixCache, work: Work, prefixes: PrefixBuilder) -> None:
        self._cache = cache
        self._work = work
        self._prefixes = prefixes
        self._counted: OrderedDict[str, int] = OrderedDict()
        """Of users who were off the device when it came: the event that is in their rate, and was not appended yet."""
        self._prefilling: dict[object, str] = {}
        """Whose prefill in chunks is under way; a user who is forgotten is none of them any more."""

    @torch.inference_mode()
    def warm(self, views: Sequence[HistoryView]) -> WarmReport:
        called_at = perf_counter()
        self._work.reap()
        before = self._work.tokens_appended
        host = self._cache.host
        # Whose copy is being read from the file is served sooner with it than computed anew.
        waiting = deque(v for v in newest(views).values() if host is None or not host.is_coming(v.user_id))
        users = 0
        ahead: list[Plan] = []
        work = self._work
        work.appender.begun = None
        while waiting:
            plans: dict[str, Plan] = {}
            pages = 0
            while waiting:
                plan = self._plan(waiting[0])
                if plan is not None:
                    more = self._prefixes.pages(plan)
                    if pages + more > self._cache.pool.num_pages:
                        break
                    pages += more
                    plans[plan.user_id] = plan
                self._counted.pop(waiting.popleft().user_id, None)
            if plans:
                self._append(plans)
            users += sum(bool(len(plan.tokens)) or plan.copy is not None for plan in plans.values())
            ahead += [plan for done in plans.values() if (plan := self._prefixes.plan_ahead(done)) is not None]
        for plan in ahead:
            try:
                self._append({plan.user_id: plan})
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                # The users themselves have theirs.
                logger.info("no memory for a user's next window: it is computed when it is needed")
                break
        work.tend()
        tokens = work.tokens_appended - before
        ended = work.append_lane.mark()
        begun = work.appender.begun or ended
        return WarmReport(users, tokens, begun.made_at - called_at, begun, ended)

    @torch.inference_mode()
    def prefilling(self, view: HistoryView, chunk_tokens: int) -> Generator[WarmReport, None, None]:
        self._work.reap()
        left, this = 1, object()
        self._prefilling[this] = view.user_id
        try:
            while left:  # more than once if another catalog gives them other tokens meanwhile
                plan = self._plan(view)
                if plan is None or plan.base is not None:
                    return
                with closing(self._work.run_in_chunks(self._prefixes, plan, chunk_tokens)) as chunks:
                    for tokens, left, begun, ended in chunks:
                        if not left:
                            self._counted.pop(view.user_id, None)
                        yield WarmReport(int(not left), tokens, 0.0, begun, ended)
                        if this not in self._prefilling:
                            return
        finally:
            self._prefilling.pop(this, None)

    @torch.inference_mode()
    def expect(self, views: Sequence[HistoryView]) -> None:
        cache, host = self._cache, self._cache.host
        if host is None:
            return
        self._work.reap()
        for user_id, view in newest(views).items():
            if user_id in cache:
                continue
            cache.worth.seen(user_id)
            self._count(view)
            host.touch(user_id)
            copy = self._prefixes.copy_of(view)
            if copy is None:
                host.fetch(user_id, partial(self._prefixes.is_of_use, view=view))
                continue
            prefix = copy.prefix
            if self._work.may_promote and cache.would_keep(user_id, prefix.num_tokens, prefix.kv_tokens):
                self._work.promote(copy)
        self._work.tend()

    @torch.inference_mode()
    def demote(self, user_ids: Iterable[str]) -> None:
        self._work.settle()
        for user_id in user_ids:
            if user_id in self._cache:
                self._work.demote(user_id)

    def forget(self, user_ids: Iterable[str]) -> None:
        """Nothing of these users is to be remembered."""
        for user_id in user_ids:
            self._counted.pop(user_id, None)
            for prefill in [key for key, user in self._prefilling.items() if user == user_id]:
                del self._prefilling[prefill]

    def _plan(self, view: HistoryView) -> Plan | None:
        plan = self._prefixes.plan(view)
        if plan is None or self._counted.get(view.user_id) != view.event_count:
            return plan
        return plan._replace(counted=True)

    def _count(self, view: HistoryView) -> None:
        """The view's last event is in its user's rate."""
        self._counted[view.user_id] = view.event_count
        self._counted.move_to_end(view.user_id)
        if len(self._counted) > REMEMBERED:
            self._counted.popitem(last=False)

    def _append(self, plans: Mapping[str, Plan]) -> None:
        """Start to carry out these plans, beside the decodes."""
        work = self._work
        prefixes = work.run(self._prefixes, plans, work.appender)
        work.append_lane.keep(work.append_lane.mark(), plans, work.pin(list(prefixes.values())))
        self._prefixes.seen(plans.values())
