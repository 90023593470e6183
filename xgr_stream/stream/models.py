"""The models of one worker: a challenger is loaded beside the one that serves, given users, and promoted or dropped."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from xgr_stream.config import MIB, ChallengerConfig, Role, check_role
from xgr_stream.errors import ConfigError, ShuttingDown, XgrError
from xgr_stream.scheduler.versions import Versions
from xgr_stream.scheduler.worker import DeviceWorker
from xgr_stream.stream.catalog_feed import CatalogFeed
from xgr_stream.stream.loading import check, load, prepare
from xgr_stream.stream.setup import ServedEngine, Setup
from xgr_stream.stream.topology import ensure_topics

logger = logging.getLogger(__name__)

T = TypeVar("T")


class _Loaded:
    """A model with what keeps its catalog up to date."""

    def __init__(self, engine: ServedEngine, feed: CatalogFeed, topic: str) -> None:
        self.engine = engine
        self.feed = feed
        self.topic = topic
        self.following: asyncio.Task[None] | None = None

    async def stop(self) -> None:
        if self.following is not None:
            self.following.cancel()
            await asyncio.gather(self.following, return_exceptions=True)
        await self.feed.stop()


class Models:
    """One change at a time, each a swap between two batches: what is under way is finished by the engine that began it.
    A change that has begun goes on to its end, whether or not its caller still waits for it.

    All on the loop's thread. What fails while a challenger is loaded, or in the updates of its catalog, is the
    challenger's end; `on_failure` hears of what keeps the primary from going on.
    """

    def __init__(
        self,
        setup: Setup,
        versions: Versions[ServedEngine],
        device: DeviceWorker,
        on_failure: Callable[[BaseException], None],
    ) -> None:
        self.error: str | None = None
        """Why the last challenger could not be loaded, or was dropped; None if nothing failed since."""
        self.topics = {setup.config.topics.catalog}
        """Of the updates of all catalogs that were ever named here: a challenger's is others' after it is dropped."""
        self._setup = setup
        self._versions = versions
        self._device = device
        self._on_failure = on_failure
        self._changing: asyncio.Task[Any] | None = None
        """What is being done; its name says what."""
        self._giving_up: set[asyncio.Task[None]] = set()
        self._challenger: _Loaded | None = None
        self._primary = self._loaded(versions.primary, setup.config.topics.catalog, serves=True)

    # What an operator asks for

    async def load(
        self,
        model: str | Path | ServedEngine,
        *,
        role: Role = "shadow",
        fraction: float = 0.05,
        catalog: str | Path | None = None,
        catalog_topic: str | None = None,
        cache_bytes: int = 512 * MIB,
    ) -> str:
        """Load a challenger, as a `ChallengerConfig` of these fields says, and give it its users; returns its version.
        `model`: a checkpoint directory, or an engine over the worker's own history (`recommender.history`).

        The worker serves meanwhile. Raises `ConfigError` if it can't be loaded: nothing has changed then.
        """
        engine = None if isinstance(model, str | Path) else model
        name = str(model) if engine is None else engine.version
        catalog = None if catalog is None else str(catalog)
        config = ChallengerConfig(name, role, fraction, catalog, catalog_topic, cache_bytes)
        return await self._change(f"{name} is being loaded", partial(self._load, config, engine))

    async def adjust(self, *, role: Role | None = None, fraction: float | None = None) -> None:
        """Give the challenger another role, or another share of the users. A larger share holds all of a smaller one's
        users, and a canary's are those that the shadow had."""
        await self._change("a challenger's share is being changed", partial(self._adjust, role, fraction))

    async def promote(self) -> None:
        """Have the challenger serve everybody, and let go of the primary. Users whom the challenger did not have yet
        are cold: give it their share before, in steps."""
        await self._change("a challenger is being promoted", self._promote)

    async def drop(self) -> None:
        """Have the primary serve everybody, and let go of the challenger."""
        await self._change("a challenger is being dropped", self._drop)

    def status(self) -> list[dict[str, Any]]:
        """What is loaded: the primary, and the challenger if there is one."""
        by_version = {
            loaded.engine.version: loaded for loaded in (self._primary, self._challenger) if loaded is not None
        }
        return [
            _status(by_version[version], role, fraction)
            for (version, role), fraction in self._versions.fractions.items()
            if version in by_version  # else it is just being given its users, or let go
        ]

    # The worker's side

    async def start(self) -> None:
        """The primary's catalog is up to date when this returns, and the challenger that the worker starts with is
        loaded, or has failed to be."""
        await self._primary.feed.start()
        await self._between_batches(lambda: None)
        config = self._setup.challenger
        if config is not None:
            try:
                await self._change(f"{config.model} is being loaded", partial(self._load, config, None))
            except XgrError as error:
                logger.error("the worker serves without a challenger: %s", error)

    def follow(self) -> None:
        """Keep the catalogs up to date from now on."""
        for loaded in filter(None, (self._primary, self._challenger)):
            self._follow(loaded)

    async def stop(self) -> None:
        """The device has stopped, or is about to. A change that is under way is given up."""
        if self._changing is not None:
            self._changing.cancel()
            await asyncio.wait({self._changing})
        for loaded in filter(None, (self._primary, self._challenger)):
            await loaded.stop()
        self._versions.drop()  # whoever serves these versions once more loads it anew

    @property
    def catalog(self) -> Mapping[str, Any]:
        """How far the primary's is."""
        return self._primary.feed.status

    # Changes

    async def _change(self, what: str, change: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Do it in a task of its own: a caller who is cancelled meanwhile would leave the device with engines that
        nobody here knows of."""
        if self._changing is not None:
            raise ConfigError(
                f"one change of the models at a time, and {self._changing.get_name()}: try again when it is done"
            )
        task = self._changing = asyncio.create_task(change(), name=what)
        task.add_done_callback(self._on_changed)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled():
                raise ShuttingDown("the worker is shutting down") from None
            raise
        finally:
            del task  # an error that it holds would hold this frame, and half a model, until a collection

    def _on_changed(self, _: asyncio.Task[Any]) -> None:
        self._changing = None

    async def _load(self, config: ChallengerConfig, engine: ServedEngine | None) -> str:
        if self._challenger is not None:
            version = self._challenger.engine.version
            raise ConfigError(f"there may be one challenger, and {version} is there: promote or drop it first")
        loaded: _Loaded | None = None
        try:
            topic = config.catalog_topic or self._primary.topic
            self.topics.add(topic)
            if engine is None:
                engine = await load(config, self._setup.engine_config, self._versions.primary)
            check(config, engine, self._versions.primary, self._primary.topic)
            if config.catalog_topic is not None:
                topics = replace(self._setup.config.topics, catalog=topic)
                await ensure_topics(self._setup.connection, topics, self._setup.config.partitions)
            loaded = self._loaded(engine, topic, serves=False)
            await loaded.feed.start()
            await prepare(engine, self._device)
            loaded.feed.serves = True
            await self._between_batches(partial(self._versions.challenge, engine, config.role, config.fraction))
        except BaseException as error:
            if loaded is not None:
                await loaded.stop()
            if not isinstance(error, Exception):
                raise  # the worker stops
            self.error = f"{config.model} can't be loaded: {str(error) or type(error).__name__}"
            self._setup.metrics.model_loads_failed.inc()
            logger.error("%s", self.error, exc_info=not isinstance(error, XgrError))
            if isinstance(error, ConfigError):
                raise
            raise ConfigError(self.error) from error
        self.error = None
        self._challenger = loaded
        if self._primary.following is not None:  # else all begin together
            self._follow(loaded)
        logger.info("%s is loaded: %s for %s of the users", engine.version, config.role, config.fraction)
        return engine.version

    async def _adjust(self, role: Role | None, fraction: float | None) -> None:
        loaded, challenger = self._needed(), self._versions.challenger
        if challenger is None:
            raise ConfigError("there is no challenger: the worker is shutting down")
        role, fraction = role or challenger.role, challenger.fraction if fraction is None else fraction
        check_role(role, fraction)
        await self._between_batches(partial(self._versions.challenge, loaded.engine, role, fraction))
        logger.info("%s is %s for %s of the users", loaded.engine.version, role, fraction)

    async def _promote(self) -> None:
        loaded, former = self._needed(), self._primary
        await self._between_batches(self._versions.promote)
        self._primary, self._challenger = loaded, None
        logger.info("%s serves everybody, in the place of %s", loaded.engine.version, former.engine.version)
        await former.stop()

    async def _drop(self) -> None:
        loaded = self._needed()
        await self._between_batches(self._versions.drop)
        self._challenger = None
        logger.info("%s is dropped; %s serves everybody", loaded.engine.version, self._versions.primary.version)
        await loaded.stop()

    async def _between_batches(self, action: Callable[[], None]) -> None:
        """Change who serves whom."""
        versions, metrics = self._versions, self._setup.metrics

        def change() -> None:
            before = versions.engines
            action()
            for engine in before:
                if engine not in versions.engines:
                    try:
                        engine.close()
                    except Exception:  # the change is made; a device that is lost says so to the next batch
                        logger.exception("what %s had under way, when it was let go, failed", engine.version)
            metrics.keep_models([engine.version for engine in versions.engines])
            metrics.set_fractions(versions.fractions)

        await asyncio.wrap_future(self._device.between_batches(change))

    def _needed(self) -> _Loaded:
        if self._challenger is None:
            raise ConfigError("there is no challenger: load one first")
        return self._challenger

    # Catalogs

    def _loaded(self, engine: ServedEngine, topic: str, *, serves: bool) -> _Loaded:
        setup, version = self._setup, engine.version
        feed = CatalogFeed(
            *(setup.connection, topic, engine, self._device, setup.config, setup.metrics),
            serves=serves,
            leads=lambda: version == self._versions.primary.version,
        )
        return _Loaded(engine, feed, topic)

    def _follow(self, loaded: _Loaded) -> None:
        loaded.following = asyncio.create_task(loaded.feed.run(), name="xgr-catalog")
        loaded.following.add_done_callback(partial(self._on_ended, loaded))

    def _on_ended(self, loaded: _Loaded, task: asyncio.Task[None]) -> None:
        if task.cancelled() or (error := task.exception()) is None:
            return
        giving_up = asyncio.create_task(self._give_up(loaded, error), name="xgr-give-up")
        self._giving_up.add(giving_up)
        giving_up.add_done_callback(self._giving_up.discard)

    async def _give_up(self, loaded: _Loaded, error: BaseException) -> None:
        """Its catalog can't be kept up to date."""
        while self._changing is not None:  # which may be about this one
            await asyncio.wait({self._changing})
        if loaded is self._primary:
            self._on_failure(error)
        elif loaded is self._challenger:
            self.error = f"{loaded.engine.version} was dropped, its catalog can't be kept up to date: {error}"
            logger.error("%s", self.error)
            try:
                await self.drop()
            except XgrError as failure:
                logger.error("%s could not be dropped: %s", loaded.engine.version, failure)


def _status(loaded: _Loaded, role: str, fraction: float) -> dict[str, Any]:
    return {
        "version": loaded.engine.version,
        "role": role,
        "fraction": fraction,
        "catalog": {"topic": loaded.topic, **loaded.feed.status},
    }
