"""What waits to be written, and the records whose offsets wait for it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from xgr_stream.config import StreamConfig
from xgr_stream.errors import XgrError
from xgr_stream.metrics import Metrics
from xgr_stream.stream import codec, protocol
from xgr_stream.stream.partition import Partition
from xgr_stream.stream.records import Produce, Record, key_passed_on, num_bytes, passed_on

logger = logging.getLogger(__name__)


class Output:
    """What to write, and the records whose offsets wait for it. Drivers read `produces` and hand it back."""

    __slots__ = ("num_bytes", "number", "offsets", "partition", "produces", "then", "topic")

    def __init__(
        self,
        partition: Partition,
        produces: Sequence[Produce],
        *,
        record: Record | None = None,
        then: Callable[[], None] | None = None,
    ) -> None:
        self.partition = partition
        self.produces = produces
        self.num_bytes = sum(map(num_bytes, produces))
        self.topic = None if record is None else record.topic
        """Topic of the records whose offsets wait; None: none do (clean-up of the changelog)."""
        self.offsets: Sequence[int] = () if record is None else (record.offset,)
        self.number = -1
        """Of the partition's outputs."""
        self.then = then
        """Called when all of it is durable."""


class Outbox:
    """Outputs in the order in which they must be written. `put` on the loop's thread, `wake` on any."""

    def __init__(self, config: StreamConfig, metrics: Metrics) -> None:
        self._config = config
        self._metrics = metrics
        self._outputs: list[Output] = []
        self._wake: Callable[[], None] = lambda: None
        self._woken = False

    def on_wake(self, wake: Callable[[], None]) -> None:
        self._wake = wake

    def wake(self) -> None:
        """Have the driver poll. Once is enough between two polls."""
        if not self._woken:
            self._woken = True
            self._wake()

    def open(self) -> None:
        """Whatever comes from now on needs a wake of its own. Called before a poll looks at anything."""
        self._woken = False

    def put(self, output: Output) -> None:
        outputs = output.partition.outputs
        output.number = outputs.last_taken + 1
        outputs.take(output.number)
        self._outputs.append(output)
        self.wake()

    def dead_letter(self, partition: Partition, record: Record, error: XgrError) -> None:
        """Put the record aside for people to look at; its offset goes on once that is durable."""
        self._metrics.dead_letters.labels(error.code).inc()
        logger.debug("dead letter from %s-%d at %d: %s", record.topic, record.partition, record.offset, error.code)
        value = codec.encode(protocol.dead_letter_message(record, error), self._config.codec)
        key, headers = key_passed_on(record.key), passed_on(record.headers)
        produce = Produce(self._config.topics.dead_letters, None, key, value, headers)
        self.put(Output(partition, (produce,), record=record))

    def take(self) -> list[Output]:
        """Everything put since the last call, but for partitions revoked meanwhile."""
        outputs, self._outputs = self._outputs, []
        return [output for output in outputs if output.partition.held]
