"""Records of a Faust app's consumer, by the batch.

Faust hands each record to its agents by itself: a message, an event, a queue, a turn of the loop, its sensors, an
acknowledgement. Of a topic partition that nobody in the app reads but the recommender, the records are taken out of
what the consumer fetched, before all that. Faust is told what its own work depends on: how far a partition was read,
what is open (a rebalance and the app's end wait for that), and what may be committed.

A partition that another agent or stream of the app reads as well goes Faust's way, to all of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain, zip_longest
from time import monotonic
from typing import Any
from weakref import WeakSet

import faust
from faust.types import TP
from mode.utils.futures import notify

from xgr_stream.stream.connection import record_of
from xgr_stream.stream.records import EVENTS_AT_ONCE, REQUESTS_AT_ONCE, Record

Fetched = dict[TP, list[Any]]

PAUSE_S, LONG_PAUSE_S, MANY = 0.001, 0.005, 10
"""Between two fetches while records come in a row, and once one brings `MANY`: each is a call of another thread, and
requests to the broker."""
RESTING_POLL_S = 0.01
"""While partitions rest: how soon it is seen that they need not any more."""


class _Open:
    """Stands for a partition's records that are not done yet, among the messages that Faust waits for before a
    rebalance and at its end."""

    def __init__(self, tp: TP) -> None:
        self.tp = tp
        self.acked, self.refcount = False, 1
        self.last = -1
        """Offset of the last that was handed on."""

    def __repr__(self) -> str:
        return f"<records of {self.tp.topic}-{self.tp.partition} up to {self.last}>"


class FaustBatches:
    """Takes the records of the events and requests topics from the app's consumer and gives them to `take`, a slice of
    one topic at a time, each partition's in offset order.

    `committable(topic, partition)`: up to where everything is durable. `must_rest(topic, partition)`: read no more of
    it for now.
    """

    def __init__(
        self,
        app: faust.App,
        *,
        events: str,
        requests: str,
        take: Callable[[str, list[Record]], None],
        committable: Callable[[str, int], int | None],
        must_rest: Callable[[str, int], bool],
    ) -> None:
        self._app = app
        self._sizes = {events: EVENTS_AT_ONCE, requests: REQUESTS_AT_ONCE}
        self._take = take
        self._committable = committable
        self._must_rest = must_rest
        self._let_go_of = {events, requests}
        self._open: dict[TP, _Open] = {}
        self._acknowledged: WeakSet[Any] = WeakSet()
        """Messages that came Faust's way, of which others may still have to do."""
        self._stopped = False
        self._pause_until = float("-inf")
        self._consumer: Any = None

    def let_go_of(self, topic: str) -> None:
        """Have Faust wait no more, once we have stopped, for what we have open of this topic as well."""
        self._let_go_of.add(topic)

    def start(self) -> None:
        """Before the app's consumer is started."""
        self._open.clear()
        self._stopped = False
        consumer: Any = self._app.consumer
        if consumer is not self._consumer:
            self._consumer = consumer
            self._getmany, consumer._getmany = consumer._getmany, self._fetch
            self._offsets, consumer._filter_committable_offsets = consumer._filter_committable_offsets, self._to_commit
            self._clean, consumer._clean_unacked_messages = consumer._clean_unacked_messages, self._wait_no_more
            consumer.close = self._leave_connected

    def stop(self) -> None:
        """What comes from now on is let go, and Faust waits for nothing more, however it came to us. What is durable is
        still committed."""
        self._stopped = True
        if self._consumer is not None:
            self._wait_no_more()
            notify(self._consumer._waiting_for_ack)

    def revoked(self, tps: Iterable[TP]) -> None:
        """Nothing that was handed on of these counts any more."""
        for tp in tps:
            opened = self._open.pop(tp, None)
            if opened is not None:
                self._done(opened)

    def acknowledged(self, message: Any) -> None:
        """We are done with this one, which came Faust's way."""
        if not message.acked:
            self._acknowledged.add(message)

    def progressed(self, topic: str, partition: int) -> None:
        """More of the partition may be committed."""
        opened = self._open.get(TP(topic, partition))
        if opened is not None and not opened.acked:
            upto = self._committable(topic, partition)
            if upto is not None and upto > opened.last:
                self._done(opened)

    def _done(self, opened: _Open) -> None:
        opened.acked = True
        self._consumer._unacked_messages.discard(opened)
        notify(self._consumer._waiting_for_ack)

    # In place of the consumer's own

    async def _fetch(self, active_partitions: set[TP] | None, timeout: float) -> Mapping[TP, list[Any]]:
        """`Consumer._getmany`: what others are to get of what was fetched."""
        if active_partitions is not None:
            resting = {tp for tp in active_partitions if self._is_ours(tp) and self._must_rest(*tp)}
            if resting:
                active_partitions = active_partitions - resting
                timeout = RESTING_POLL_S
        pause_s = RESTING_POLL_S if active_partitions == set() else self._pause_until - monotonic()
        if pause_s > 0:
            await asyncio.sleep(pause_s)
        if active_partitions == set():  # the consumer would take it for all
            return {}
        fetched: Fetched = await self._getmany(active_partitions=active_partitions, timeout=timeout)
        ours = {tp: fetched.pop(tp) for tp in [tp for tp in fetched if self._is_ours(tp)]}
        if ours:
            await self._hand_on(ours)
            self._pause_until = monotonic() + (PAUSE_S if sum(map(len, ours.values())) < MANY else LONG_PAUSE_S)
        return fetched

    def _to_commit(self, tps: Iterable[TP]) -> dict[TP, int]:
        """`Consumer._filter_committable_offsets`: of our partitions too."""
        offsets: dict[TP, int] = self._offsets([tp for tp in tps if tp not in self._open])
        for tp in self._open:
            offset = self._committable(*tp)
            if offset is not None and self._consumer._should_commit(tp, offset):
                offsets[tp] = offset
        return offsets

    def _wait_no_more(self) -> None:
        """`Consumer._clean_unacked_messages`, which Faust calls while it waits for messages: of those too, once we have
        stopped, that nobody but us has open. We let them go, but where Faust still has them is not to be seen."""
        self._clean()
        consumer = self._consumer
        consumer._unacked_messages -= {message for message in consumer._unacked_messages if self._is_over(message)}

    def _is_over(self, message: Any) -> bool:
        ours = self._stopped and message.tp.topic in self._let_go_of and message not in self._acknowledged
        return message.acked or (ours and message.refcount <= 1)

    def _leave_connected(self) -> None:
        """`Consumer.close`, which Faust calls when a rebalance begins while the app stops: it closes the connections
        under the commit that the stop waits for, which is then tried for ever."""

    def _is_ours(self, tp: TP) -> bool:
        """Whether we alone read it, which changes with an assignment only."""
        conductor: Any = self._app.topics
        return tp.topic in self._sizes and len(conductor._tp_index.get(tp, ())) == 1

    async def _hand_on(self, fetched: Fetched) -> None:
        """What was fetched before a rebalance is let go: it comes again, to its partition's owner."""
        app, consumer = self._app, self._consumer
        generation = app.consumer_generation_id
        if not app.flow_control.is_active():
            await consumer.wait_first(app.flow_control.acquire(), consumer.suspend_flow.wait())
        for topic, messages in self._slices(fetched):
            if self._stopped or not consumer.flow_active or app.consumer_generation_id != generation:
                return
            records = list(map(record_of, messages))
            self._note(topic, records)
            self._take(topic, records)
            await asyncio.sleep(0)

    def _slices(self, fetched: Fetched) -> Iterator[tuple[str, list[Any]]]:
        """In turn of events and of requests, over all partitions: a slice of each would be a few records."""
        slices = []
        for topic, size in self._sizes.items():
            messages = [message for tp, found in fetched.items() if tp.topic == topic for message in found]
            slices.append([(topic, messages[first : first + size]) for first in range(0, len(messages), size)])
        return filter(None, chain.from_iterable(zip_longest(*slices)))

    def _note(self, topic: str, records: list[Record]) -> None:
        """They are open from now on; and what Faust looks at to see whether a partition is stuck."""
        consumer, monitor = self._consumer, self._app.monitor
        monitor.messages_received_total += len(records)
        monitor.messages_received_by_topic[topic] += len(records)
        for partition, offset in {record.partition: record.offset for record in records}.items():
            tp = TP(topic, partition)
            opened = self._open.get(tp)
            if opened is None:
                self._open[tp] = opened = _Open(tp)
            opened.last, opened.acked = offset, False
            consumer._unacked_messages.add(opened)
            consumer._read_offset[tp] = monitor.tp_read_offsets[tp] = offset
            monitor.stream_inbound_time[tp] = monotonic()
            monitor.track_tp_end_offset(tp, consumer.highwater(tp))
