"""From users' histories to recommendations: appends to cached prefixes, batched beam decode, the facade `Engine`."""

from xgr_stream.engine.engine import Engine, EngineStats, WarmReport
from xgr_stream.engine.switches import Switches

__all__ = ["Engine", "EngineStats", "Switches", "WarmReport"]
