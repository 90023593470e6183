"""From users' histories to recommendations: appends to cached prefixes, batched beam decode, the facade `Engine`."""

from xgr_stream.engine.engine import Engine, EngineStats
from xgr_stream.engine.switches import Switches
from xgr_stream.engine.warming import WarmReport

__all__ = ["Engine", "EngineStats", "Switches", "WarmReport"]
