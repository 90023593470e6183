"""From a tombstone's produce to the last answer that holds its item, in a catalog of many items.

    PYTHONPATH=.:kernels python tests/integration/tombstones_at_scale.py ITEMS [--kafka-home DIR] [--tombstones N]

A worker with a tiny model on the CPU and three users who ask all the time. Each tombstone is of an item that was just
recommended, and comes back once no answer has held it for half a second. Without DIR the broker is the embedded one.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import time

import numpy as np
import torch

from tests.integration.workers import kafka_worker, until
from xgr_stream import Engine
from xgr_stream.client import RecommendClient
from xgr_stream.config import EngineConfig, StreamConfig
from xgr_stream.stream import codec, protocol
from xgr_stream.testing.broker import ApacheKafka, Broker, EmbeddedBroker
from xgr_stream.testing.shapes import random_catalog, random_model
from xgr_stream.types import CatalogUpdate

CODES = (8192,) * 3
ASKERS = 3
"""Users, one request of each at a time."""
AWAY_S = 0.5


async def measure(broker: Broker, engine: Engine, tombstones: int) -> tuple[list[float], list[float]]:
    """Seconds from each tombstone to the last answer with its item, and that each answer took."""
    config = StreamConfig()
    catalog, draw = engine.catalog, random.Random(0)
    seen: dict[str, float] = {}
    latest: list[str] = []
    took: list[float] = []
    done = asyncio.Event()
    producer = await broker.connection.start_producer()

    async def write(update: CatalogUpdate) -> None:
        message = protocol.update_message(update)
        data = None if message is None else codec.encode(message, "msgpack")
        await producer.send_and_wait(config.topics.catalog, data, update.item_id.encode(), partition=0)

    async with (
        kafka_worker(broker, config, engine),
        RecommendClient(broker.connection, topics=config.topics) as client,
    ):

        async def ask(user: str) -> None:
            for row in draw.sample(range(catalog.num_rows), 20):
                await client.send_event(user, catalog.item_ids[row])
            while not done.is_set():
                asked = time.monotonic()
                response = await client.recommend(user, k=20, timeout=20)
                now = time.monotonic()
                took.append(now - asked)
                found = [item.item_id for item in response.items]
                seen.update(dict.fromkeys(found, now))
                latest[:] = found or latest

        delays = []
        async with asyncio.TaskGroup() as group:
            for number in range(ASKERS):
                group.create_task(ask(f"user-{number}"))
            await until(lambda: len(took) > 20 * ASKERS and latest)
            for _ in range(tombstones):
                item_id = draw.choice(latest)
                place = CatalogUpdate(item_id, catalog.sid(item_id), catalog.columns.tags.of_row(catalog.row(item_id)))
                sent = time.monotonic()
                await write(CatalogUpdate(item_id, None))
                await until(lambda sent=sent, own=item_id: time.monotonic() > max(sent, seen[own]) + AWAY_S)
                delays.append(max(0.0, seen[item_id] - sent))
                await write(place)
            done.set()
    await producer.stop()
    return delays, took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("items", type=int)
    parser.add_argument("--kafka-home")
    parser.add_argument("--tombstones", type=int, default=100)
    args = parser.parse_args()
    torch.set_num_threads(1)
    engine = Engine.load(random_model("tiny", CODES), random_catalog(CODES, args.items, tags=8), config=EngineConfig())
    with ApacheKafka(args.kafka_home) if args.kafka_home else EmbeddedBroker() as broker:
        delays, took = asyncio.run(measure(broker, engine, args.tombstones))
    for what, seconds in (("from a tombstone to the last answer with its item", delays), ("an answer", took)):
        p50, p99, most = (float(np.quantile(seconds, q)) for q in (0.5, 0.99, 1.0))
        print(f"{args.items:,} items: {what}: P50 {p50:.3f}, P99 {p99:.3f}, longest {most:.3f} s, of {len(seconds):,}")


if __name__ == "__main__":
    main()
