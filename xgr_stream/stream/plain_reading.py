"""Records of a consumer as aiokafka decodes them, without the objects that it makes of each.

It takes an aiokafka record by record through two iterators and makes an object of each, which is four fifths of all the
time that it takes to read. An aiokafka that does that in another way goes on doing it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from functools import partial
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition


def read_plainly(consumer: AIOKafkaConsumer, topic: str, *, at_once: int | None = None) -> None:
    """Have a started consumer return this topic's records as they were decoded: with key, value, offset, timestamp and
    headers, but not the topic and the partition. With `at_once` it returns whole batches, until they are so many
    records; it must then be asked without `max_records`."""
    if hasattr(consumer._fetcher, "_records"):
        consumer._fetcher._records = _Fetched(topic, at_once)


class _Fetched(OrderedDict[TopicPartition, Any]):
    """What a consumer has fetched and not returned."""

    def __init__(self, topic: str, at_once: int | None) -> None:
        super().__init__()
        self._topic = topic
        self._at_once = at_once

    def __setitem__(self, tp: TopicPartition, result: Any) -> None:
        records: Any = getattr(result, "_partition_records", None)  # an error has none
        if tp.topic == self._topic and hasattr(records, "_consumer_record"):
            records._consumer_record = _as_decoded
            if self._at_once is not None and hasattr(records, "_records"):
                records._records = _Batches(records._records)
                records._consumer_record = partial(_of_batch, records)
                result.getall = partial(_getall, result, self._at_once)
        super().__setitem__(tp, result)


def _as_decoded(tp: TopicPartition, record: Any) -> Any:
    return record


class _Batches:
    """Batches that count as one record each, for aiokafka to judge (checksums, transactions) and to go through."""

    def __init__(self, batches: Any) -> None:
        self._batches = batches

    def has_next(self) -> bool:
        return bool(self._batches.has_next())

    def next_batch(self) -> _Batch:
        return _Batch(self._batches.next_batch())


class _Batch:
    def __init__(self, batch: Any) -> None:
        self._batch = batch

    def __getattr__(self, name: str) -> Any:
        return getattr(self._batch, name)

    def __next__(self) -> Any:
        """The record of a transaction's marker."""
        return next(self._batch)

    def __iter__(self) -> Iterator[_Several]:
        records = list(self._batch)
        if records:
            yield _Several(records)


class _Several:
    """The records of a batch, as one."""

    def __init__(self, records: list[Any]) -> None:
        self.records = records
        self.offset = records[-1].offset


def _of_batch(records: Any, tp: TopicPartition, several: _Several) -> list[Any]:
    """Those that were asked for: a batch is fetched whole."""
    begin = records.next_fetch_offset
    if several.records[0].offset >= begin:
        return several.records
    return [record for record in several.records if record.offset >= begin]


def _getall(result: Any, at_once: int, max_records: None = None) -> list[Any]:
    """`FetchResult.getall`."""
    if not result.check_assignment(result._topic_partition) or not result.has_more():
        return []
    found: list[Any] = []
    for batch in result._partition_records:
        found += batch
        if len(found) >= at_once:
            result._update_position()
            return found
    result._update_position()
    result._partition_records = None
    return found
