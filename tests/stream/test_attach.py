"""What `attach` takes, and what it refuses before anything runs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import faust
import pytest

from xgr_stream.config import StreamConfig, TopicNames
from xgr_stream.errors import ConfigError, TopologyError
from xgr_stream.scheduler.versions import Versions
from xgr_stream.stream.attachment import attach
from xgr_stream.stream.faust_driver import FaustDriver
from xgr_stream.stream.topology import all_topics
from xgr_stream.testing import NullEngine
from xgr_stream.types import UserEvent

OTHER_TOPICS = TopicNames("views", "asked", "answered", changelog="histories")


def to_event(view: object) -> UserEvent | None:
    return None


class Asynchronous:
    """An event function that has to be awaited, though it is no coroutine function itself."""

    async def __call__(self, view: object) -> UserEvent | None:
        return to_event(view)


def test_attach_needs_something_to_serve(app: faust.App) -> None:
    with pytest.raises(ConfigError, match="model and catalog"):
        attach(app, model="models/shop")


def test_attach_refuses_fausts_own_transactions() -> None:
    app = faust.App("twice", broker="kafka://localhost:9092", processing_guarantee="exactly_once")
    with pytest.raises(ConfigError, match="processing_guarantee must be at_least_once, not exactly_once"):
        attach(app, engine=NullEngine())


@pytest.mark.parametrize("source", [lambda app: app.channel(), lambda app: app.topic("a", "b"), lambda app: ["a", "b"]])
def test_attach_refuses_several_sources_without_repartition(app: faust.App, source: Callable[..., Any]) -> None:
    with pytest.raises(ConfigError, match="repartition=True"):
        attach(app, engine=NullEngine(), events=source(app))


def test_attach_takes_the_applications_own_topic(app: faust.App) -> None:
    views = app.topic("page-views")
    recommender = attach(app, engine=NullEngine(), events=views, event=lambda view: None)
    assert recommender.config.topics == TopicNames(events="page-views")


def test_attach_twice_needs_topics_of_its_own_for_each(app: faust.App) -> None:
    """One of two agents of a topic would take the other's place: its recommender would hear of nothing."""
    attach(app, engine=NullEngine())
    agents = dict(app.agents)
    with pytest.raises(TopologyError, match="rec-requests, rec-responses, user-events, xgr-history-changelog are"):
        attach(app, engine=NullEngine())
    config = StreamConfig(topics=TopicNames(requests="asked", responses="answered"))
    with pytest.raises(TopologyError, match="and xgr-history-changelog are"):
        attach(app, engine=NullEngine(), events="page-views", config=config)
    assert dict(app.agents) == agents


def test_attach_twice_repartitions_for_each(app: faust.App) -> None:
    for topics in (TopicNames(), OTHER_TOPICS):
        config = StreamConfig(topics=topics)
        attach(app, engine=NullEngine(), events="page-views", event=to_event, repartition=True, config=config)
    assert {"xgr-repartition-user-events-0", "xgr-repartition-views-0"} <= set(app.agents)


@pytest.mark.parametrize("source", all_topics(TopicNames()))
@pytest.mark.parametrize("as_topic", [False, True])
def test_a_recommender_is_not_fed_from_its_own_topics(app: faust.App, source: str, as_topic: bool) -> None:
    """Each copy would be copied again, for ever."""
    sources = ["page-views", app.topic(source) if as_topic else source]
    with pytest.raises(TopologyError, match=rf"^events must be .* repartition=True, not {source}, which"):
        attach(app, engine=NullEngine(), events=sources, event=to_event, repartition=True)
    if source != "user-events":
        with pytest.raises(TopologyError, match=rf"^events must be .* nothing else, not '{source}'"):
            attach(app, engine=NullEngine(), events=sources[1])
    assert not any(isinstance(child, FaustDriver) for child in app._children)


def test_another_recommenders_events_may_be_repartitioned(app: faust.App) -> None:
    attach(app, engine=NullEngine())
    config = StreamConfig(topics=OTHER_TOPICS)
    attach(app, engine=NullEngine(), events="user-events", event=to_event, repartition=True, config=config)


@pytest.mark.parametrize("again", [lambda engine: engine, Versions, lambda engine: NullEngine(history=engine.history)])
def test_an_engine_and_a_history_are_one_recommenders_alone(app: faust.App, again: Callable[..., Any]) -> None:
    """Two topics' offsets in one history: the events of one would be taken for what the other's had told already."""
    engine = NullEngine()
    attach(app, engine=engine)
    with pytest.raises(ConfigError, match=r"^engine must be this recommender's alone, not "):
        attach(app, engine=again(engine), config=StreamConfig(topics=OTHER_TOPICS))
    attach(app, engine=NullEngine(), config=StreamConfig(topics=OTHER_TOPICS))


@pytest.mark.parametrize(
    ("arguments", "refusal"),
    [
        ({"event": 5}, "event must be a plain function from a value to UserEvent or None, not 5"),
        ({"event": asyncio.sleep}, "event must be a plain function from a value to UserEvent or None, not <function"),
        ({"event": Asynchronous()}, "event must be a plain function from a value to UserEvent or None, not <"),
        ({"events": 5}, "events must be a topic's name, a Faust topic or channel, or a list of some, not 5"),
        ({"events": ["a", 5]}, r"events must be .*, not \['a', 5\]"),
        ({"events": "a b"}, "events must be .*, not 'a b'"),
        ({"events": []}, r"events must be .*, not \[\]"),
        ({"repartition": True, "event": len}, r"events must be given with repartition=True.*, not None"),
        ({"metrics": 3}, r"metrics must be Metrics\(\.\.\.\) or None, not 3"),
        ({"model": "models/shop"}, "engine must be None with a model or a catalog.*, not <"),
        ({"catalog": "catalog.parquet"}, "engine must be None with a model or a catalog.*, not <"),
        ({"engine": 5}, "engine must be an Engine, or Versions of some, not 5"),
    ],
)
def test_attach_names_an_argument_that_cannot_be(app: faust.App, arguments: dict[str, Any], refusal: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{refusal}"):
        attach(app, **{"engine": NullEngine(), **arguments})


@pytest.mark.parametrize("source", [lambda app: app.topic(pattern="page-.*"), lambda app: app.topic("a", "b")])
def test_repartition_reads_topics_of_one_name_each(app: faust.App, source: Callable[..., Any]) -> None:
    with pytest.raises(ConfigError, match=r"^events must be topics of one name each, not <"):
        attach(app, engine=NullEngine(), events=source(app), event=to_event, repartition=True)


async def test_the_recommender_is_deaf_until_the_app_runs(app: faust.App) -> None:
    recommender = attach(app, engine=NullEngine())
    with pytest.raises(RuntimeError, match="must have started"):
        await recommender.recommend("user-1")
