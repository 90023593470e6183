"""What the topics hold when all is over, and how far the group has come."""

from __future__ import annotations

from dataclasses import dataclass

from aiokafka import TopicPartition

from xgr_stream.cli.faults.views import Views
from xgr_stream.config import TopicNames
from xgr_stream.stream.connection import Connection, record_of, stop_client
from xgr_stream.stream.records import Record

POLL_MS = 500


@dataclass(frozen=True, slots=True)
class Written:
    """All records of a recommender's topics, each partition's in offset order."""

    events: list[Record]
    requests: list[Record]
    responses: list[Record]
    dead_letters: list[Record]
    changelog: list[Record]
    views: list[Record]
    """What the events are copies of, if they are."""


async def written(
    connection: Connection, topics: TopicNames, partitions: int, views: Views | None, *, committed: bool = False
) -> Written:
    """Read all topics from their beginning to where they end now; `committed`: what was committed of them alone."""
    isolation = "read_committed" if committed else "read_uncommitted"

    async def read(topic: str, count: int = partitions) -> list[Record]:
        return await _read(connection, isolation, [TopicPartition(topic, number) for number in range(count)])

    return Written(
        events=await read(topics.events),
        requests=await read(topics.requests),
        responses=await read(topics.responses),
        dead_letters=await read(topics.dead_letters, 1),
        changelog=await read(topics.changelog),
        views=[] if views is None else await read(views.topic, views.partitions),
    )


async def _read(connection: Connection, isolation: str, partitions: list[TopicPartition]) -> list[Record]:
    consumer = connection.consumer(auto_offset_reset="earliest", isolation_level=isolation)
    await consumer.start()
    try:
        consumer.assign(partitions)
        ends = await consumer.end_offsets(partitions)
        left = {tp for tp in partitions if ends[tp] > 0}
        records: list[Record] = []
        while left:
            for batch in (await consumer.getmany(*left, timeout_ms=POLL_MS)).values():
                records += map(record_of, batch)
            for tp in [tp for tp in left if await consumer.position(tp) >= ends[tp]]:
                left.discard(tp)
        return records
    finally:
        await stop_client(consumer)


class Progress:
    """A reader beside the group: how far its commits are behind, and how to set them back while it has no members."""

    def __init__(
        self, connection: Connection, topics: TopicNames, partitions: int, views: Views | None, group_id: str
    ) -> None:
        self._events = topics.events
        self.rewound: dict[tuple[str, int], int] = {}
        """(topic, partition) → the lowest offset that it was set back to."""
        counts = {} if views is None else {views.topic: views.partitions}
        counts |= dict.fromkeys((topics.events, topics.requests), partitions)
        self._topics = [[TopicPartition(topic, number) for number in range(count)] for topic, count in counts.items()]
        """What is copied comes before what it is copied into."""
        self._consumer = connection.consumer(group_id=group_id, auto_offset_reset="earliest")

    async def start(self) -> None:
        await self._consumer.start()
        self._consumer.assign(self.partitions)

    async def stop(self) -> None:
        await stop_client(self._consumer)

    async def behind(self) -> dict[TopicPartition, int]:
        """Records of each partition that are not committed yet, of those that have some. What is committed of views is
        copied, so that nothing is written to events behind the ends that are asked for after that."""
        behind: dict[TopicPartition, int] = {}
        for partitions in self._topics:
            ends = await self._consumer.end_offsets(partitions)
            committed = {tp: await self._consumer.committed(tp) or 0 for tp in partitions}
            behind |= {tp: ends[tp] - committed[tp] for tp in partitions if ends[tp] > committed[tp]}
        return behind

    async def rewind(self, parts: dict[TopicPartition, float]) -> dict[TopicPartition, int]:
        """Set the given partitions back by a part of what was committed; how many records each. Raises `KafkaError`
        while the group has members."""
        back = {}
        offsets = {}
        for tp, part in parts.items():
            committed = await self._consumer.committed(tp) or 0
            if committed:
                back[tp] = round(committed * part)
                offsets[tp] = committed - back[tp]
                self.rewound[tp] = min(offsets[tp], self.rewound.get(tp, offsets[tp]))
        if offsets:
            await self._consumer.commit(offsets)
        return back

    @property
    def partitions(self) -> list[TopicPartition]:
        return [tp for partitions in self._topics for tp in partitions]

    def of_events(self, tp: TopicPartition) -> bool:
        return bool(tp.topic == self._events)
