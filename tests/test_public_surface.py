"""The public surface, frozen: a name, a field or a default that changes here changes for every user."""

from __future__ import annotations

import dataclasses
import inspect

import pytest

import xgr_stream
from xgr_stream import config, types

NAMES = [
    "CacheConfig",
    "CacheState",
    "Catalog",
    "CatalogUpdate",
    "ChallengerConfig",
    "Engine",
    "EngineConfig",
    "HistoryConfig",
    "ItemFilter",
    "RecommendClient",
    "RecommendRequest",
    "RecommendResponse",
    "Recommendation",
    "Recommender",
    "Shortfall",
    "Status",
    "StreamConfig",
    "TopicNames",
    "Unscored",
    "UserEvent",
    "WindowConfig",
    "XgrError",
    "__version__",
    "attach",
]

FIELDS = {
    types.UserEvent: "user_id item_id action timestamp_ms",
    types.CatalogUpdate: "item_id sid tags available",
    types.ItemFilter: "exclude allow deny seen",
    types.RecommendRequest: (
        "request_id user_id k beam_width filter timeout_ms min_offset reply_to tail caps min_score "
        "candidates temperature seed min_offset_partition"
    ),
    types.Recommendation: "item_id score sid",
    types.RecommendResponse: (
        "request_id user_id status items error message event_count event_offset model_version catalog_version cache "
        "stages_ms tail_computed shortfall unscored"
    ),
    config.WindowConfig: "max_events stride",
    config.ChallengerConfig: "model role fraction catalog catalog_topic cache_bytes",
    config.CacheConfig: "budget_bytes page_size host_bytes file_bytes file_directory kv_cache_dtype",
    config.EngineConfig: "beam_width widened_beam_width normalizer device dtype fp8 window cache max_batch_rows "
    "max_batch_tokens append_piece_ms prefill_chunk_tokens graph_bytes",
    config.HistoryConfig: "keep_events segment_events",
    config.TopicNames: "events requests responses dead_letters changelog catalog",
    config.StreamConfig: (
        "topics partitions codec history snapshots standby_bytes transactions partitioner default_timeout_ms "
        "dedup_window_ms max_message_bytes max_pending_requests max_open_events max_unpublished_answers "
        "max_waiting_bytes shutdown_timeout_s warm_users"
    ),
}

TOPICS = {
    "events": "user-events",
    "requests": "rec-requests",
    "responses": "rec-responses",
    "dead_letters": "rec-dead-letters",
    "changelog": "xgr-history-changelog",
    "catalog": "catalog-updates",
}


def test_names_are_frozen() -> None:
    assert xgr_stream.__all__ == NAMES
    assert dir(xgr_stream) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_every_name_is_there_and_documented(name: str) -> None:
    value = getattr(xgr_stream, name)
    if name != "__version__":
        assert inspect.getdoc(value), f"{name} has no docstring"
        assert value.__module__.startswith("xgr_stream.")


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Recomender'"):
        _ = xgr_stream.Recomender


@pytest.mark.parametrize("owner", FIELDS, ids=lambda owner: owner.__name__)
def test_fields_are_frozen(owner: type) -> None:
    if issubclass(owner, tuple):  # a named one, which a hundred of an answer are made of
        assert list(owner._fields) == FIELDS[owner].split()
        return
    assert [field.name for field in dataclasses.fields(owner)] == FIELDS[owner].split()
    assert owner.__dataclass_params__.frozen


def test_statuses_and_cache_states_are_frozen() -> None:
    assert [status.value for status in types.Status] == ["ok", "unknown_user", "error"]
    assert [shortfall.value for shortfall in types.Shortfall] == ["exhausted", "threshold", "beams"]
    assert [why.value for why in types.Unscored] == ["unknown", "unavailable", "unknown_user"]
    assert [state.value for state in types.CacheState] == ["warm", "appended", "host", "cold", "none"]


def test_topic_names_are_frozen() -> None:
    assert dataclasses.asdict(config.TopicNames()) == TOPICS
