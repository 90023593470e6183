"""Events and requests from Kafka topics, through Faust or without it. Loaded on first use."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xgr_stream.stream.attachment import attach as attach
    from xgr_stream.stream.connection import Connection as Connection
    from xgr_stream.stream.recommender import Recommender as Recommender

_HOME = {"Connection": "connection", "Recommender": "recommender", "attach": "attachment"}

__all__ = ["Connection", "Recommender", "attach"]


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value
