"""What a worker is made of, and what the stream asks of the engine that it serves."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from xgr_stream.config import ChallengerConfig, EngineConfig, StreamConfig
from xgr_stream.history import HistoryStore
from xgr_stream.metrics import Metrics
from xgr_stream.scheduler.ports import DeviceEngine
from xgr_stream.scheduler.versions import Versions
from xgr_stream.stream.connection import Connection
from xgr_stream.stream.ingest import DecodeEvent
from xgr_stream.types import CatalogUpdate


class Merge(Protocol):
    """The next catalog in the making."""

    @property
    def swapping(self) -> bool:
        """Whether `finish` has begun to change the engine: nothing that fails then can be taken back."""
        ...

    def run(self) -> None:
        """On any thread."""
        ...

    def handed_over(self) -> Mapping[str, CatalogUpdate]:
        """On the device thread: what came meanwhile; nothing if it is little enough to finish."""
        ...

    def follow(self, updates: Mapping[str, CatalogUpdate]) -> None:
        """On any thread, after `run`."""
        ...

    def finish(self) -> None:
        """On the device thread, between two batches."""
        ...

    def abandon(self) -> None:
        """On the device thread, instead of `finish`: what it was to merge goes on waiting."""
        ...

    def discard(self) -> None:
        """On any thread, after `finish` or `abandon`."""
        ...


class ServedEngine(DeviceEngine, Protocol):
    """What a worker serves: `xgr_stream.Engine`, or a double of it."""

    @property
    def history(self) -> HistoryStore: ...

    def knows_item(self, item_id: str) -> bool: ...

    @property
    def codes(self) -> tuple[int, ...]:
        """Codes per level that a semantic ID may have."""
        ...

    def update_catalog(self, updates: Sequence[CatalogUpdate], position: int) -> None: ...

    def begin_merge(self) -> Merge | None:
        """What merges the items that wait for it; None: there are none."""
        ...

    def preparing(self) -> Iterator[None]:
        """On the device thread, before it serves: each step prepares a part, with batches of others in between."""
        ...

    def close(self) -> None:
        """On the device thread, when it is let go: wait for what is under way."""
        ...


@dataclass(frozen=True, slots=True)
class Setup:
    """What a worker is made of. `decode_event` reads the application's own event records (None: our protocol).

    `engine` as `Versions`: whoever made it keeps no other reference to what is served, so that a model's memory is free
    once another has taken its place.
    """

    engine: ServedEngine | Versions[ServedEngine]
    connection: Connection
    group_id: str
    config: StreamConfig
    engine_config: EngineConfig
    metrics: Metrics
    decode_event: DecodeEvent | None = None
    challenger: ChallengerConfig | None = None
    """To be loaded before the worker serves. If it can't be, the worker serves without."""
    sources: Collection[str] = ()
    """Topics of the application's that it copies events from."""
