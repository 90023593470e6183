"""Users whose whole histories a test compares, on one worker or on several."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from xgr_stream.client import RecommendClient
from xgr_stream.config import StreamConfig
from xgr_stream.stream.kafka_driver import KafkaDriver
from xgr_stream.testing.broker import Broker

USERS = [f"user-{i}" for i in range(12)]


async def send(broker: Broker, config: StreamConfig, items: Iterable[str]) -> None:
    """Each of these happens to each of the users, in this order."""
    async with RecommendClient(broker.connection, topics=config.topics) as client:
        for item in items:
            await asyncio.gather(*(client.send_event(user, item) for user in USERS))


def histories(*drivers: KafkaDriver) -> dict[str, list[str]]:
    """The items of each user who has a history on one of these workers."""
    found = {}
    for driver in drivers:
        history = driver.runtime.setup.engine.history
        views = {user: history.view(user) for user in USERS}
        found |= {user: [history.item_names[i] for i in view.items.tolist()] for user, view in views.items() if view}
    return found
