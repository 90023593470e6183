"""`attach`: a recommender inside an existing Faust app."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from inspect import iscoroutinefunction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import faust
from faust.topics import Topic
from faust.transport.drivers.aiokafka import credentials_to_aiokafka_auth, server_list
from faust.types import ChannelT
from faust.types.enums import ProcessingGuarantee

from xgr_stream.config import (
    ChallengerConfig,
    EngineConfig,
    StreamConfig,
    TopicNames,
    check_settings,
    is_topic_name,
    settings_or_default,
)
from xgr_stream.errors import ConfigError, TopologyError
from xgr_stream.history import HistoryStore
from xgr_stream.metrics import Metrics
from xgr_stream.scheduler.versions import Versions
from xgr_stream.stream import codec
from xgr_stream.stream.connection import Connection
from xgr_stream.stream.faust_driver import FaustDriver
from xgr_stream.stream.health import Page, Pages
from xgr_stream.stream.ingest import DecodeEvent
from xgr_stream.stream.recommender import Recommender
from xgr_stream.stream.records import Record
from xgr_stream.stream.repartition import Repartition, ToEvent
from xgr_stream.stream.setup import ServedEngine, Setup
from xgr_stream.stream.topology import all_topics, check_apart, check_sources
from xgr_stream.types import UserEvent

if TYPE_CHECKING:
    from xgr_stream.catalog import Catalog
    from xgr_stream.model import Model

Source = str | ChannelT[Any]


def attach(
    app: faust.App,
    *,
    model: str | Path | Model | None = None,
    catalog: str | Path | Catalog | None = None,
    engine: ServedEngine | Versions[ServedEngine] | None = None,
    challenger: ChallengerConfig | None = None,
    config: StreamConfig | None = None,
    engine_config: EngineConfig | None = None,
    events: Source | Sequence[Source] | None = None,
    event: ToEvent | None = None,
    repartition: bool = False,
    metrics: Metrics | None = None,
) -> Recommender:
    """Make a Faust app serve recommendations: its worker takes in events and requests, beside the app's own agents.

    Give a `model` and its `catalog` (paths or loaded), or an `engine`. `challenger` is a second version to begin with;
    `recommender.models` loads one while the app runs, promotes and drops it. `events` is the application's own topic of
    events (name or Faust topic) instead of `config.topics.events`; `event` turns one of its values, as an agent of
    that topic would get it, into a `UserEvent`, or None for one that is none of ours. It must be keyed by user id. With
    `repartition=True`, `events` may be any topics and channels, keyed by anything: they are converted and written
    into `config.topics.events`. A topic's record counts once, though its copy may be written again after a crash or a
    rebalance: copies name their originals. What comes from a channel has no offset, and counts as often as it comes.
    `event` must say the same of the same record each time.

    The app's consumer must keep equal partition numbers together: Faust's own assignor, which it uses while
    `table_standby_replicas` is at least 1. `/metrics`, `/healthz` and `/readyz` are added to the app's web server.

    An app may be attached to again, with topics of its own for each recommender (see `TopicNames`); the pages are the
    first one's, and an engine, with its history, is one recommender's alone. A second model for the same users needs
    no second recommender: `challenger`. Raises `TopologyError` for topics that two of them, or two uses, would share,
    and `ConfigError` for any other argument that can't be.
    """
    config = settings_or_default("config", config, StreamConfig)
    engine_config = settings_or_default("engine_config", engine_config, EngineConfig)
    check_settings("challenger", challenger, ChallengerConfig, optional=True)
    if config.transactions is not None:
        raise ConfigError(
            "transactions must be None in a Faust app, whose driver commits offsets by itself: run `xgr-stream worker "
            "--transactional` beside it"
        )
    guarantee: Any = app.conf.processing_guarantee  # Faust declares it as the type, not a value
    if guarantee is ProcessingGuarantee.EXACTLY_ONCE:
        raise ConfigError(
            "processing_guarantee must be at_least_once, not exactly_once: Faust's transactions fail to commit the "
            "offsets of these topics, which hold each event's history once as it is"
        )
    check_settings("metrics", metrics, Metrics, optional=True)
    metrics = metrics or Metrics()
    if event is not None and (not callable(event) or any(map(iscoroutinefunction, (event, type(event).__call__)))):
        raise ConfigError(f"event must be a plain function from a value to UserEvent or None, not {event!r}")
    sources = _sources(events)
    decode_event: DecodeEvent | None = None
    copied = _copied_topics(sources) if repartition else []
    if repartition:
        check_sources(config.topics, copied)
    elif sources:
        config = replace(config, topics=_reading(_only_topic(sources), config.topics))
    drivers = [child for child in app._children if isinstance(child, FaustDriver)]
    for other in drivers:
        check_apart(config.topics, other.topics)
    if engine is None:
        engine = Versions(_load(model, catalog, config, engine_config))
    elif model is not None or catalog is not None:
        raise ConfigError(f"engine must be None with a model or a catalog, which it has already, not {engine!r}")
    history = _history(engine)
    if any(history is other.history for other in drivers):
        raise ConfigError(
            f"engine must be this recommender's alone, not {engine!r}, whose history another one of this app has: the "
            "positions of two topics of events would be taken for one's, and events be lost"
        )
    if event is not None and not repartition:
        decode_event = _decoder(_reader(app, sources[0] if sources else "", config), event)

    def make_setup() -> Setup:
        return Setup(
            *(engine, connection_of(app), app.conf.id, config, engine_config, metrics, decode_event),
            challenger=challenger,
            sources=copied,
        )

    recommender = Recommender(config, metrics)
    driver = FaustDriver(app, recommender, make_setup, history)
    if repartition:
        Repartition(app, driver, config, metrics, [_convertible(app, source, config, event) for source in sources])
    _add_pages(app, driver, metrics)
    return recommender


def connection_of(app: faust.App) -> Connection:
    """The brokers that the app itself uses, with its credentials."""
    transport: Any = app.transport
    bootstrap = ",".join(server_list(transport.url, transport.default_port))
    return Connection(bootstrap, credentials_to_aiokafka_auth(app.conf.broker_credentials, app.conf.ssl_context))


def _load(
    model: str | Path | Model | None,
    catalog: str | Path | Catalog | None,
    config: StreamConfig,
    engine_config: EngineConfig,
) -> ServedEngine:
    from xgr_stream.engine import Engine

    if model is None or catalog is None:
        raise ConfigError("model and catalog must both be given, or an engine")
    engine = Engine.load(model, catalog, config=engine_config, history=HistoryStore(config.history))
    engine.prepare()
    return engine


def _history(engine: ServedEngine | Versions[ServedEngine]) -> HistoryStore:
    """The same one for as long as it is served: what takes an engine's place takes its history on."""
    history = getattr(engine.primary if isinstance(engine, Versions) else engine, "history", None)
    if not isinstance(history, HistoryStore):
        raise ConfigError(f"engine must be an Engine, or Versions of some, not {engine!r}")
    return history


def _sources(events: Source | Sequence[Source] | None) -> list[Source]:
    if events is None:
        return []
    listed = [events] if isinstance(events, str | ChannelT) else list(events) if isinstance(events, Sequence) else []
    if not listed or not all(isinstance(source, ChannelT) or is_topic_name(source) for source in listed):
        raise ConfigError(f"events must be a topic's name, a Faust topic or channel, or a list of some, not {events!r}")
    return listed


def _copied_topics(sources: Sequence[Source]) -> list[str]:
    """The names of the topics among what is to be repartitioned."""
    if not sources:
        raise ConfigError("events must be given with repartition=True: topics and channels to convert, not None")
    named = {_topic_name(source): source for source in sources if isinstance(source, str | Topic)}
    if None in named:
        raise ConfigError(f"events must be topics of one name each, not {named[None]!r}")
    return [name for name in named if name is not None]


def _reading(events: str, topics: TopicNames) -> TopicNames:
    if events in {*all_topics(topics)} - {topics.events}:
        raise TopologyError(
            f"events must be a topic that this recommender uses for nothing else, not {events!r}: name another, or the "
            "others otherwise (StreamConfig.topics)"
        )
    return replace(topics, events=events)


def _only_topic(sources: Sequence[Source]) -> str:
    names = [_topic_name(source) for source in sources]
    if len(names) != 1 or names[0] is None:
        raise ConfigError(
            "events must be one topic with one name, since a recommender has one ordered topic of events; several "
            "topics and channels can be written into it with repartition=True"
        )
    return names[0]


def _topic_name(source: Source) -> str | None:
    if isinstance(source, str):
        return source
    names = source.topics if isinstance(source, Topic) else ()
    return names[0] if len(names) == 1 else None


def _reader(app: faust.App, source: Source, config: StreamConfig) -> Callable[[bytes], Any]:
    """Bytes → what an agent of this topic would get. Of one given by name: the map that the message is."""
    if not isinstance(source, Topic):
        return lambda value: codec.decode(value, config.max_message_bytes)
    return lambda value: app.serializers.loads_value(source.value_type, value, serializer=source.value_serializer)


def _decoder(read: Callable[[bytes], Any], event: ToEvent) -> Callable[[Record], UserEvent | None]:
    def decode(record: Record) -> UserEvent | None:
        return event(read(record.value or b""))

    return decode


def _convertible(
    app: faust.App, source: Source, config: StreamConfig, event: ToEvent | None
) -> tuple[ChannelT[Any], ToEvent]:
    """A source to repartition, and what turns what its agent gets into a `UserEvent`."""
    if event is None:
        raise ConfigError("event must be given with repartition=True: a function from a value to UserEvent or None")
    channel = app.topic(source) if isinstance(source, str) else source
    if not isinstance(channel, Topic):
        return channel, event
    read = _reader(app, source, config)
    return channel, lambda value: event(read(value or b""))


def _add_pages(app: faust.App, driver: FaustDriver, metrics: Metrics) -> None:
    pages = Pages(lambda: driver.runtime, metrics)
    for path, page in pages.by_path().items():
        app.page(path, name=f"xgr-{path[1:]}")(_view(page))


def _view(page: Callable[[], Page]) -> Callable[[Any, Any], Awaitable[Any]]:
    async def view(web: Any, request: Any) -> Any:
        status, content_type, body = page()
        return web.bytes(body, content_type=content_type, status=status)

    return view
