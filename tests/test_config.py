"""Settings check themselves; the window is a pure function of the event count."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import faust
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xgr_stream.client import RecommendClient
from xgr_stream.config import (
    CacheConfig,
    ChallengerConfig,
    EngineConfig,
    HistoryConfig,
    StreamConfig,
    TopicNames,
    TransactionConfig,
    WindowConfig,
)
from xgr_stream.engine import Engine
from xgr_stream.errors import ConfigError
from xgr_stream.history import HistoryStore
from xgr_stream.stream import attach
from xgr_stream.testing import NullEngine, tiny_catalog, tiny_model


def attach_to_an_app(**settings: Any) -> None:
    app = faust.App("test", broker="kafka://127.0.0.1:1", web_enabled=False, autodiscover=False)
    attach(app, engine=NullEngine(), **settings)


@pytest.mark.parametrize("device", ["", "gpu", "CUDA", "mps", "cpu:1", "cuda:", "cuda:-1", 0])
def test_a_device_that_is_none_is_named(device: Any) -> None:
    with pytest.raises(ConfigError, match=f"^device must be 'cpu', 'cuda' or 'cuda:N' .*, not {device!r}$"):
        EngineConfig(device=device)


@pytest.mark.parametrize(
    ("build", "names"),
    [
        (lambda: WindowConfig(max_events=0), "max_events"),
        (lambda: WindowConfig(max_events=8, stride=0), "stride"),
        (lambda: WindowConfig(max_events=8, stride=9), "stride"),
        (lambda: WindowConfig(stride=True), "stride"),
        (lambda: WindowConfig(max_events="many"), "max_events"),  # type: ignore[arg-type]
        (lambda: WindowConfig(max_events=2.5), "max_events"),  # type: ignore[arg-type]
        (lambda: CacheConfig(budget_bytes=0), "budget_bytes"),
        (lambda: CacheConfig(page_size=0), "page_size"),
        (lambda: CacheConfig(page_size=48), "page_size"),
        (lambda: CacheConfig(page_size=True), "page_size"),
        (lambda: EngineConfig(beam_width=0), "beam_width"),
        (lambda: EngineConfig(beam_width=100_000), "beam_width"),
        (lambda: EngineConfig(widened_beam_width=100_000), "widened_beam_width"),
        (lambda: EngineConfig(beam_width="wide"), "beam_width"),  # type: ignore[arg-type]
        (lambda: EngineConfig(normalizer="softmax"), "normalizer"),  # type: ignore[arg-type]
        (lambda: EngineConfig(dtype="int8"), "dtype"),  # type: ignore[arg-type]
        (lambda: EngineConfig(fp8="no"), "fp8"),  # type: ignore[arg-type]
        (lambda: EngineConfig(window=512), "window"),  # type: ignore[arg-type]
        (lambda: EngineConfig(cache=1 << 30), "cache"),  # type: ignore[arg-type]
        (lambda: EngineConfig(max_batch_rows=1), "max_batch_rows"),
        (lambda: EngineConfig(max_batch_tokens=0), "max_batch_tokens"),
        (lambda: EngineConfig(graph_bytes=0), "graph_bytes"),
        (lambda: HistoryConfig(keep_events=0), "keep_events"),
        (lambda: HistoryConfig(segment_events=0), "segment_events"),
        (lambda: HistoryConfig(segment_events=501), "segment_events"),
        (lambda: TopicNames(events="one", requests="one"), "topic names"),
        (lambda: TopicNames(events="a.b", requests="a_b"), "topic names"),
        (lambda: TopicNames(events=""), "events"),
        (lambda: TopicNames(requests="rec requests"), "requests"),
        (lambda: TopicNames(responses="x" * 250), "responses"),
        (lambda: TopicNames(dead_letters="."), "dead_letters"),
        (lambda: TopicNames(changelog=".."), "changelog"),
        (lambda: TopicNames(catalog="catalogue-d'été"), "catalog"),
        (lambda: TopicNames(events="user-events\n"), "events"),
        (lambda: TopicNames(events=["user-events"]), "events"),  # type: ignore[arg-type]
        (lambda: ChallengerConfig("models/b", catalog_topic="b/updates"), "catalog_topic"),
        (lambda: WindowConfig(max_events=8, stride="4"), "stride"),  # type: ignore[arg-type]
        (lambda: CacheConfig(page_size="64"), "page_size"),  # type: ignore[arg-type]
        (lambda: StreamConfig(topics="user-events"), "topics"),  # type: ignore[arg-type]
        (lambda: StreamConfig(history=2048), "history"),  # type: ignore[arg-type]
        (lambda: StreamConfig(snapshots="/var/snapshots"), "snapshots"),  # type: ignore[arg-type]
        (lambda: StreamConfig(transactions=True), "transactions"),  # type: ignore[arg-type]
        (lambda: StreamConfig(dedup_window_ms=-1), "dedup_window_ms"),
        (lambda: StreamConfig(codec="pickle"), "codec"),  # type: ignore[arg-type]
        (lambda: StreamConfig(partitioner="random"), "partitioner"),  # type: ignore[arg-type]
        (lambda: StreamConfig(default_timeout_ms=0), "default_timeout_ms"),
        (lambda: StreamConfig(max_message_bytes=10), "max_message_bytes"),
        (lambda: StreamConfig(max_pending_requests=0), "max_pending_requests"),
        (lambda: StreamConfig(shutdown_timeout_s=-1), "shutdown_timeout_s"),
        (lambda: StreamConfig(shutdown_timeout_s=math.inf), "shutdown_timeout_s"),
        (lambda: TransactionConfig(timeout_s=math.inf), "timeout_s"),
        (lambda: TransactionConfig(timeout_s=math.nan), "timeout_s"),
        (lambda: StreamConfig(warm_users=-1), "warm_users"),
    ],
)
def test_a_wrong_setting_is_named(build: Callable[[], Any], names: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{names} must .*, not "):
        build()


@pytest.mark.parametrize("value", [3, 0, {}, "config", EngineConfig, CacheConfig()])
@pytest.mark.parametrize(
    ("taker", "name", "kind"),
    [
        (partial(Engine.load, "models/none", "none.parquet"), "config", "EngineConfig"),
        (attach_to_an_app, "config", "StreamConfig"),
        (attach_to_an_app, "engine_config", "EngineConfig"),
        (attach_to_an_app, "challenger", "ChallengerConfig"),
        (partial(RecommendClient, "localhost:9092"), "topics", "TopicNames"),
        (HistoryStore, "config", "HistoryConfig"),
    ],
)
def test_whatever_takes_settings_names_what_is_none(
    taker: Callable[..., Any], name: str, kind: str, value: Any
) -> None:
    with pytest.raises(ConfigError) as refused:
        taker(**{name: value})
    assert str(refused.value) == f"{name} must be {kind}(...) or None, not {value!r}"


def test_an_engine_must_have_its_config() -> None:
    with pytest.raises(ConfigError, match=r"^config must be EngineConfig\(\.\.\.\), not None$"):
        Engine(tiny_model(), tiny_catalog(), config=None)  # type: ignore[arg-type]


def test_a_topic_may_have_any_name_that_kafka_takes() -> None:
    assert TopicNames(events="...", requests="A.b_c-9", responses="x" * 249).responses == "x" * 249


def test_defaults_are_valid() -> None:
    for settings in (WindowConfig, CacheConfig, EngineConfig, HistoryConfig, TopicNames, StreamConfig):
        assert settings() == settings()


windows = st.integers(1, 300).flatmap(
    lambda most: st.builds(WindowConfig, st.just(most), st.none() | st.integers(1, most))
)


@given(windows, st.integers(0, 5_000))
def test_the_window_starts_where_it_must(window: WindowConfig, event_count: int) -> None:
    start = window.start(event_count)
    stride = window.stride or max(1, window.max_events // 2)
    in_context = event_count - start

    assert start % stride == 0
    assert in_context <= window.max_events
    if event_count <= window.max_events:
        assert start == 0
    else:
        assert in_context > window.max_events - stride, "the window moved further than one stride"


@given(windows, st.integers(0, 5_000))
def test_the_window_never_moves_back(window: WindowConfig, event_count: int) -> None:
    assert window.start(event_count) <= window.start(event_count + 1)
