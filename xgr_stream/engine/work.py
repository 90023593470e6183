"""What the device has to do, in order: appends and decodes on their lanes, and the memory that they hold meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

from xgr_stream.cache import PrefixCache, UserPrefix
from xgr_stream.config import EngineConfig
from xgr_stream.engine.append import Appender
from xgr_stream.engine.lanes import Lane, Mark
from xgr_stream.engine.prefixes import Plan, PrefixBuilder
from xgr_stream.engine.switches import Switches
from xgr_stream.model import Model


class Work:
    """An engine's two lanes. A decode does not wait for other users' appends, and memory that work under way reads or
    writes is pinned until that work is done."""

    def __init__(
        self, model: Model, cache: PrefixCache, config: EngineConfig, switches: Switches, *, page_columns: int
    ) -> None:
        device = cache.hidden.device
        self.decode_lane = Lane(device, priority=-1)
        self.append_lane = Lane(device) if switches.streams else self.decode_lane

        def appender(lane: Lane) -> Appender:
            most = config.max_batch_tokens
            return Appender(model, cache, lane, switches, max_batch_tokens=most, page_columns=page_columns)

        self.appender = appender(self.append_lane)
        """For users who are warmed ahead of their requests."""
        self.request_appender = appender(self.decode_lane)
        """For what a request still lacks."""
        self._cache = cache
        cache.settle = partial(_settle, self.append_lane, self.decode_lane)  # not a method: that would be a cycle
        self.tokens_appended = 0
        """Since the engine was loaded."""

    def run(self, prefixes: PrefixBuilder, plans: Mapping[str, Plan], appender: Appender) -> dict[str, UserPrefix]:
        """The prefixes of these users, brought up to their plans on the appender's lane."""
        self.decode_lane.reap()
        self.append_lane.reap()
        if appender is self.request_appender:
            self.decode_lane.follow(self.append_lane, plans)
        else:
            # Not beside the decodes that are under way: each would take its whole length longer, whatever its priority.
            self.append_lane.follow(self.decode_lane)
        self.tokens_appended += sum(len(plan.tokens) for plan in plans.values())
        with appender.lane.current():
            return {prefix.user_id: prefix for prefix in prefixes.run(list(plans.values()), appender)}

    def pin(self, prefixes: Sequence[UserPrefix]) -> Callable[[], None]:
        """Hold these prefixes' memory until what this returns is called."""
        for prefix in prefixes:
            self._cache.pin(prefix)

        def unpin() -> None:
            for prefix in prefixes:
                self._cache.unpin(prefix)

        return unpin

    def keep(self, unpin: Callable[[], None], lane: Lane, mark: Mark, users: Iterable[str]) -> None:
        """Call `unpin` once the lane's work up to the mark, for these users, is done."""
        lane.keep(mark, users, unpin)
        lane.reap()

    def settle(self) -> None:
        """Wait for everything under way."""
        _settle(self.append_lane, self.decode_lane)


def _settle(*lanes: Lane) -> None:
    for lane in lanes:
        lane.reap(leave=0)
