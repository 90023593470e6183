"""How long a worker takes to have its users' histories at hand from a changelog in Apache Kafka, without a snapshot.

    PYTHONPATH=.:kernels python tests/history/recover_from_kafka.py --kafka-home DIR [--users N] [--partitions N]

Writes a compacted changelog (untimed): the users' segments in turn, in another order each time, then their deltas.
Then, each in a process of its own, reads it with aiokafka alone, which is the floor, and restores all partitions from
it as a worker does. Prints JSON lines: seconds, CPU seconds, resident memory.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import Callable, Iterator

import msgpack
import numpy as np
from aiokafka import AIOKafkaProducer, TopicPartition
from recover_at_scale import CONFIG, ITEMS, each_apart, processor, report, resident_bytes, users_of

from xgr_stream.config import StreamConfig
from xgr_stream.stream import changelog
from xgr_stream.stream.batches import bound_topics
from xgr_stream.stream.connection import Connection
from xgr_stream.stream.recovery import Recovery
from xgr_stream.stream.topology import ensure_topics
from xgr_stream.testing import ManualClock
from xgr_stream.testing.broker import ApacheKafka

TOPICS = StreamConfig().topics


def entries(partition: int, args: argparse.Namespace) -> Iterator[tuple[bytes, bytes]]:
    names = [f"item-{i}" for i in range(ITEMS)]
    pack, size = msgpack.Packer(use_bin_type=True).pack, CONFIG.segment_events
    users = list(users_of(partition, args))
    order = np.random.default_rng(partition)
    for number in range(args.events // size):
        for at in order.permutation(len(users)).tolist():
            user_id, items, offset = users[at]
            listed = [names[i] for i in items[number * size : (number + 1) * size].tolist()]
            last = offset - args.events + (number + 1) * size - 1
            yield changelog.segment_key(user_id, number), pack((changelog.MAJOR, last, listed, None))
    for number in range(args.events // size * size, args.events):
        for at in order.permutation(len(users)).tolist():
            user_id, items, offset = users[at]
            value = pack((changelog.MAJOR, offset - args.events + number, names[items[number]], None))
            yield changelog.delta_key(user_id, number), value


async def write(args: argparse.Namespace, bootstrap: str, partition: int) -> None:
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap, acks="all")
    await producer.start()
    batch, sending = producer.create_batch(), []
    for key, value in entries(partition, args):
        if batch.append(key=key, value=value, timestamp=None) is None:
            sending.append(await producer.send_batch(batch, TOPICS.changelog, partition=partition))
            batch = producer.create_batch()
            batch.append(key=key, value=value, timestamp=None)
            if len(sending) > 100:
                await asyncio.gather(*sending)
                sending = []
    sending.append(await producer.send_batch(batch, TOPICS.changelog, partition=partition))
    await asyncio.gather(*sending)
    await producer.stop()


async def read(args: argparse.Namespace, bootstrap: str) -> None:
    """With aiokafka alone."""
    consumer = Connection(bootstrap).consumer(auto_offset_reset="earliest")
    await consumer.start()
    tps = [TopicPartition(TOPICS.changelog, number) for number in range(args.partitions)]
    ends = await consumer.end_offsets(tps)
    consumer.assign(tps)
    started, cpu = time.perf_counter(), time.process_time()
    count = 0
    while count < sum(ends.values()):
        for records in (await consumer.getmany(timeout_ms=500, max_records=500)).values():
            count += len(records)
    spent = time.perf_counter() - started, time.process_time() - cpu
    await consumer.stop()
    seconds = {"ready_s": round(spent[0], 2), "ready_cpu_s": round(spent[1], 2)}
    print(json.dumps({"source": f"aiokafka alone, {count} records", "users": args.users, **seconds}), flush=True)


async def restore(args: argparse.Namespace, bootstrap: str) -> None:
    made, connection = processor(), Connection(bootstrap)
    bound_topics(TOPICS, StreamConfig().max_message_bytes)
    made.assign(range(args.partitions), args.partitions)
    restored = made.restored
    made.restored = lambda number, **_: restored(number)  # type: ignore[method-assign]  # there are no events
    producer = await connection.start_producer()
    write = producer.send_and_wait
    recovery = Recovery(connection, write, made, StreamConfig(), group_id="worker", clock=ManualClock())
    base, started, cpu = resident_bytes(), time.perf_counter(), time.process_time()
    await asyncio.gather(*(recovery.run(number) for number in range(args.partitions)))
    report(args, "changelog in Apache Kafka", made._history, started, cpu, base)
    await producer.stop()


def _run(job: Callable[..., object], *arguments: object) -> None:
    asyncio.run(job(*arguments))  # type: ignore[arg-type]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kafka-home", required=True)
    parser.add_argument("--users", type=int, default=1_000_000)
    parser.add_argument("--events", type=int, default=200)
    parser.add_argument("--partitions", type=int, default=4)
    args = parser.parse_args()
    with ApacheKafka(args.kafka_home) as broker:
        asyncio.run(ensure_topics(broker.connection, TOPICS, args.partitions))
        jobs: list[tuple[Callable[..., object], tuple[object, ...]]] = [
            (write, (args, broker.bootstrap, number)) for number in range(args.partitions)
        ]
        jobs += [(read, (args, broker.bootstrap)), (restore, (args, broker.bootstrap))]
        each_apart([(_run, (job, *arguments)) for job, arguments in jobs])


if __name__ == "__main__":
    main()
