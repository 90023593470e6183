from pathlib import Path
from typing import Any

import pytest

from xgr_stream.config import CacheConfig, EngineConfig, HistoryConfig, WindowConfig
from xgr_stream.engine import Engine
from xgr_stream.errors import CheckpointError, ConfigError
from xgr_stream.history import HistoryStore
from xgr_stream.testing import save_tiny_model, tiny_catalog, tiny_model


def test_a_cache_too_small_for_one_window_is_refused():
    config = EngineConfig(cache=CacheConfig(budget_bytes=4096), window=WindowConfig(max_events=100))
    with pytest.raises(ConfigError, match=r"cache.budget_bytes must hold one window: \d+ bytes for 100 events"):
        Engine.load(tiny_model(), tiny_catalog(), config=config)


def test_a_window_beyond_the_models_positions_is_refused():
    model = tiny_model(config={"max_position_embeddings": 64})
    with pytest.raises(ConfigError, match="takes up to 1538 positions, the model has 64"):
        Engine.load(model, tiny_catalog(), config=EngineConfig(window=WindowConfig(512)))


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"fp8": True, "device": "cuda"}, "fp8 must be given to what loads the model"),
        ({"dtype": "bfloat16"}, "dtype must be 'float32' or None with this model, which is loaded, not 'bfloat16'"),
    ],
)
def test_a_loaded_model_is_what_it_is(asked: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        Engine.load(tiny_model(), tiny_catalog(), config=EngineConfig(**asked))


def test_the_default_window_is_what_the_models_positions_take():
    small = tiny_model(config={"max_position_embeddings": 64})
    assert Engine.load(small, tiny_catalog()).window == WindowConfig(20)
    assert Engine.load(tiny_model(), tiny_catalog()).window == WindowConfig()


@pytest.mark.parametrize(
    "other", [{"window": WindowConfig(8)}, {"normalizer": "legal"}, {"beam_width": 65}, {"dtype": "bfloat16"}]
)
def test_responses_tell_settings_apart_that_answers_depend_on(tmp_path: Path, other: dict[str, Any]):
    path = save_tiny_model(tmp_path / "model")
    usual = Engine.load(path, tiny_catalog())
    assert Engine.load(path, tiny_catalog()).version == usual.version
    assert Engine.load(path, tiny_catalog(), config=EngineConfig(**other)).version != usual.version


def test_a_history_shorter_than_the_window_is_refused():
    history = HistoryStore(HistoryConfig(keep_events=100))
    with pytest.raises(ConfigError, match="keep_events must cover the window of 512 events, not 100"):
        Engine.load(tiny_model(), tiny_catalog(), history=history)


def test_a_catalog_of_other_levels_is_refused():
    with pytest.raises(CheckpointError, match="levels"):
        Engine.load(tiny_model((8, 8)), tiny_catalog((8, 8, 8)))


def test_the_checkpoint_names_window_and_normalizer_unless_the_config_does():
    model = tiny_model(xgr={"normalizer": "legal", "window": {"max_events": 7}})
    engine = Engine.load(model, tiny_catalog())
    assert (engine.normalizer, engine.window.max_events) == ("legal", 7)
    config = EngineConfig(normalizer="vocabulary", window=WindowConfig(max_events=5))
    engine = Engine.load(model, tiny_catalog(), config=config)
    assert (engine.normalizer, engine.window.max_events) == ("vocabulary", 5)
    assert Engine.load(tiny_model(), tiny_catalog()).normalizer == "level"
