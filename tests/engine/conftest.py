import pytest

from xgr_stream.config import EngineConfig, WindowConfig
from xgr_stream.engine import Engine
from xgr_stream.testing import tiny_catalog, tiny_model


@pytest.fixture
def engine() -> Engine:
    return Engine.load(tiny_model(), tiny_catalog(), config=EngineConfig(window=WindowConfig(max_events=4, stride=2)))
