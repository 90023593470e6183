"""What commands write to a topic: all of it, or a word on how much."""

from __future__ import annotations

import asyncio
from typing import Any

import click
import pytest
from aiokafka.errors import MessageSizeTooLargeError, NotEnoughReplicasError

from xgr_stream.cli.catalogs import source
from xgr_stream.cli.writing import Message, write_all
from xgr_stream.errors import InvalidUpdate
from xgr_stream.types import CatalogUpdate


class Producer:
    """Refuses what is larger than a byte at once, and a `!` later."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []

    async def start_producer(self, **_: object) -> Producer:
        return self

    async def send(self, _topic: str, value: bytes, _key: bytes, **_options: object) -> asyncio.Future[None]:
        if len(value) > 1:
            raise MessageSizeTooLargeError("too large")
        future = asyncio.get_running_loop().create_future()
        if value == b"!":
            future.set_exception(NotEnoughReplicasError("too few"))
        else:
            future.set_result(None)
            self.sent.append(value)
        return future

    async def stop(self) -> None:
        pass


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ((b"a", b"b", b"long"), "2 records were written to events, and not all: [Error 10] MessageSizeTooLargeError"),
        ((b"a", b"!", b"c"), "2 records were written to events, and not all: [Error 19] NotEnoughReplicasError"),
    ],
)
async def test_what_fails_behind_others_says_how_many_are_written(values: tuple[bytes, ...], says: str) -> None:
    producer: Any = Producer()
    with pytest.raises(click.ClickException) as caught:
        await write_all(producer, "events", [Message(b"key", value) for value in values])
    assert caught.value.message.startswith(says)
    assert len(producer.sent) == 2


async def test_an_update_that_is_too_large_is_found_before_any_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    async def there(*_: object) -> None:
        pass

    monkeypatch.setattr(source, "_check_topic", there)
    tags = tuple(chr(0x1F300 + number) * 256 for number in range(1_024))  # four bytes each
    producer: Any = Producer()
    with pytest.raises(InvalidUpdate, match=r"'b' takes .* bytes as a record, .* \(nothing was written\)"):
        await source._write(producer, "catalog", [CatalogUpdate("a", None), CatalogUpdate("b", (0, 1), tags)])
    assert not producer.sent
