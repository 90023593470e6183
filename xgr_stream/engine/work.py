"""What the device has to do, in order: appends and decodes on their lanes, and the memory that they hold meanwhile."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from functools import partial

from xgr_stream.cache import HostCopy, PrefixCache, UserPrefix
from xgr_stream.config import EngineConfig
from xgr_stream.engine.append import Appender
from xgr_stream.engine.graph_cache import GraphCache
from xgr_stream.engine.lanes import Lane, Mark
from xgr_stream.engine.movement import Movement, Mover
from xgr_stream.engine.prefixes import Plan, PrefixBuilder
from xgr_stream.engine.restore_costs import RestoreCosts
from xgr_stream.engine.switches import Switches
from xgr_stream.errors import EngineError, is_out_of_memory
from xgr_stream.model import Model

logger = logging.getLogger(__name__)

RESERVE = 16
"""One of so many pages is free or can be had at once, its user's copy made ahead."""
COPIES_UNDER_WAY = 4
"""In each direction, at most, that nobody waits for: a request's own copy is behind them."""


class Work:
    """An engine's two lanes; `use_streams(False)` leaves one of them idle. A decode does not wait for other users'
    appends, and memory that work under way reads or writes is pinned until that work is done."""

    def __init__(
        self,
        model: Model,
        cache: PrefixCache,
        config: EngineConfig,
        switches: Switches,
        costs: RestoreCosts,
        *,
        page_columns: int,
    ) -> None:
        device = cache.hidden.device
        self.decode_lane = Lane(device, priority=-1)
        self.graphs = graphs = GraphCache(config.graph_bytes)
        """Of appends and decodes."""

        def appender(lane: Lane) -> Appender:
            most = config.max_batch_tokens
            return Appender(model, cache, lane, switches, graphs, max_batch_tokens=most, page_columns=page_columns)

        self.request_appender = appender(self.decode_lane)
        """For what a request still lacks."""
        self._beside = appender(Lane(device))
        self.appender = self._beside
        """For users who are warmed ahead of their requests."""
        self.use_streams(switches.streams)
        self._computing = (self._beside.lane, self.decode_lane)
        self._cache = cache
        self._costs = costs
        self.mover = None if cache.host is None else Mover(cache, cache.host, costs, pages=page_columns)
        pages = cache.pool.num_pages
        self._reserve = min(pages // 2, max(page_columns, pages // RESERVE))
        cache.reap = partial(_reap, *self._lanes())  # not a method: that would be a cycle
        cache.settle = partial(_settle, *self._lanes())
        self.recomputed = 0
        """Prefixes that were computed though there was a copy, since that is faster."""
        self.tokens_appended = 0
        """Since the engine was loaded."""

    @property
    def append_lane(self) -> Lane:
        """Of users who are warmed ahead of their requests."""
        return self.appender.lane

    def use_streams(self, streams: bool) -> None:
        """`Switches.streams`, from now on. Nothing may be under way, but for a prefill between two of its chunks: all
        of it stays on the lane that it began on."""
        self.appender = self._beside if streams else self.request_appender

    def run(self, prefixes: PrefixBuilder, plans: Mapping[str, Plan], appender: Appender) -> dict[str, UserPrefix]:
        """The prefixes of these users, brought up to their plans on the appender's lane."""
        if appender is self.request_appender:
            self.decode_lane.follow(self._beside.lane, _touched(plans.values()))
        else:
            # Not beside the decodes that are under way: each would take its whole length longer, whatever its priority.
            self.append_lane.follow(self.decode_lane)
        ready = list(plans.values())
        if self.mover is None:
            found = prefixes.run(ready, appender)
        else:
            ready = self._brought(self.mover, ready, appender)
            contexts = [plan.num_tokens for plan in ready if plan.base is None]
            # From runs of prefills alone it is learned what they take.
            begun = appender.lane.mark() if len(contexts) == len(ready) else None
            found = prefixes.run(ready, appender)
            if begun is not None:
                ended = appender.lane.mark()
                learn = partial(_learn, self._costs, contexts, begun, ended)
                appender.lane.keep(ended, (), learn)
        self.tokens_appended += sum([len(plan.tokens) for plan in ready])
        return {prefix.user_id: prefix for prefix in found}

    def run_in_chunks(
        self, prefixes: PrefixBuilder, plan: Plan, chunk_tokens: int
    ) -> Generator[tuple[int, int, Mark, Mark], None, None]:
        """`PrefixBuilder.run_in_chunks`, beside the decodes, with each forward's begin and end."""
        lane = self.append_lane
        if plan.declined:
            self.recomputed += 1
            self._costs.preferred_computing()
        chunks = prefixes.run_in_chunks(plan, self.appender, chunk_tokens)
        with closing(chunks):
            while True:
                self._cache.reap()
                lane.follow(self.decode_lane)
                begun = lane.mark()
                step = next(chunks, None)
                if step is None:
                    return
                tokens, left = step
                self.tokens_appended += tokens
                ended = lane.mark()
                prefix = None if left else self._cache.get(plan.user_id)
                if prefix is not None:
                    lane.keep(ended, plan.touches, self.pin([prefix]))
                yield tokens, left, begun, ended

    def _brought(self, mover: Mover, plans: Sequence[Plan], appender: Appender) -> list[Plan]:
        """The plans, with all that they go on from on the device or on its way there."""
        appender.lane.follow(mover.out, _touched(plans))  # an append writes over tails being copied
        ready = []
        with ExitStack() as pins:  # none makes room for another
            for plan in plans:
                if plan.base is not None and plan.copy is None:
                    pins.enter_context(self._cache.pinned([plan.base]))
                if plan.declined:
                    self.recomputed += 1
                    self._costs.preferred_computing()
            for plan in plans:
                if plan.copy is not None:
                    prefix = self.promote(plan.copy)
                    pins.enter_context(self._cache.pinned([prefix]))
                    plan = plan._replace(base=prefix, copy=None)
                ready.append(plan)
        appender.lane.expect(mover.coming(_touched(plans)))
        return ready

    # Between the tiers.

    def promote(self, copy: HostCopy) -> UserPrefix:
        """Bring a copy to the device; it is under way when this returns. Makes room and raises as
        `PrefixCache.draft` does."""
        if self.mover is None:
            raise EngineError("there is no host tier")
        return self._moving(self.mover.promote(copy)).prefix

    @property
    def may_promote(self) -> bool:
        """Whether a copy may be brought that nobody waits for."""
        return self.mover is not None and self.mover.num_coming < COPIES_UNDER_WAY

    def tend(self) -> None:
        """Copy the next to be turned out, so that their pages can be had at once when they are wanted: no append waits
        for a copy. To be called when no plan is waiting to be run."""
        self.reap()
        mover, host, cache = self.mover, self._cache.host, self._cache
        if mover is None or host is None:
            return
        copies = cache.copies_ahead(self._reserve, self._costs.prefers_copy)
        while mover.out.num_in_flight < COPIES_UNDER_WAY and (demotion := next(copies, None)) is not None:
            try:
                movement = mover.demote(demotion, self._computing)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                # Nobody waits for it, and whoever asked has their answer.
                logger.info("no memory to copy a prefix to host memory: its user is computed anew")
                return
            self._moving(movement)

    def demote(self, user_id: str) -> None:
        """Turn the user out, once there is a copy of their prefix. Nothing else may be under way."""
        cache, host = self._cache, self._cache.host
        demotion = None if host is None else host.begin(cache.touch(user_id))
        if self.mover is not None and demotion is not None:
            self._moving(self.mover.demote(demotion, self._computing))
            self.settle()
        cache.evict(user_id)

    def _moving(self, movement: Movement) -> Movement:
        """Hold what a copy reads and writes until it is done."""
        prefix = movement.prefix
        unpin = self.pin([prefix])

        def release() -> None:
            unpin()
            movement.finish()

        movement.lane.keep(movement.mark, [prefix.user_id], release)
        return movement

    def _log(self, errors: Sequence[OSError]) -> None:
        for error in errors:
            logger.warning("a cached prefix is lost to the file behind the cache; its user is computed anew: %s", error)

    def pin(self, prefixes: Sequence[UserPrefix]) -> Callable[[], None]:
        """Hold these prefixes' memory until what this returns is called."""
        for prefix in prefixes:
            self._cache.pin(prefix)

        def unpin() -> None:
            for prefix in prefixes:
                self._cache.unpin(prefix)

        return unpin

    def reap(self) -> None:
        """Take note of all that is done, so that plans find it. To be called when no plan is waiting to be run."""
        self._cache.reap()
        if self._cache.host is not None:
            self._log(self._cache.host.tend())

    def settle(self) -> None:
        """Wait for everything under way, but for the file."""
        _settle(*self._lanes())

    def settle_file(self) -> None:
        """Wait for the file, too."""
        self.settle()
        if self._cache.host is not None:
            self._log(self._cache.host.settle())

    def _lanes(self) -> tuple[Lane, ...]:
        copying = () if self.mover is None else self.mover.lanes
        return (*self._computing, *copying)


def _touched(plans: Iterable[Plan]) -> Iterator[str]:
    return (name for plan in plans for name in plan.touches)


def _reap(*lanes: Lane) -> None:
    for lane in lanes:
        lane.reap()


def _settle(*lanes: Lane) -> None:
    for lane in lanes:
        lane.reap(leave=0)


def _learn(costs: RestoreCosts, contexts: Sequence[int], begun: Mark, ended: Mark) -> None:
    costs.computed(contexts, ended.ms_since(begun) / 1e3)
