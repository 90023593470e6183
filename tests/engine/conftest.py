import pytest

from tests.engine.deltas import Log
from xgr_stream.config import EngineConfig, WindowConfig
from xgr_stream.engine import Engine
from xgr_stream.testing import tiny_catalog, tiny_model


@pytest.fixture
def engine() -> Engine:
    return Engine.load(tiny_model(), tiny_catalog(), config=EngineConfig(window=WindowConfig(max_events=4, stride=2)))


@pytest.fixture
def log(engine: Engine) -> Log:
    engine.append("user", ["item-1", "item-2"])
    return Log(engine)
