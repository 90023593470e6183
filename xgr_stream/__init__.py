"""Generative recommendations inside your stream processor.

The names below are the whole public surface. They are imported on first use, so that `import xgr_stream` loads
neither torch nor faust.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xgr_stream.catalog import Catalog as Catalog
    from xgr_stream.client import RecommendClient as RecommendClient
    from xgr_stream.config import CacheConfig as CacheConfig
    from xgr_stream.config import ChallengerConfig as ChallengerConfig
    from xgr_stream.config import EngineConfig as EngineConfig
    from xgr_stream.config import HistoryConfig as HistoryConfig
    from xgr_stream.config import StreamConfig as StreamConfig
    from xgr_stream.config import TopicNames as TopicNames
    from xgr_stream.config import WindowConfig as WindowConfig
    from xgr_stream.engine import Engine as Engine
    from xgr_stream.errors import XgrError as XgrError
    from xgr_stream.stream import Recommender as Recommender
    from xgr_stream.stream import attach as attach
    from xgr_stream.types import CacheState as CacheState
    from xgr_stream.types import CatalogUpdate as CatalogUpdate
    from xgr_stream.types import ItemFilter as ItemFilter
    from xgr_stream.types import Recommendation as Recommendation
    from xgr_stream.types import RecommendRequest as RecommendRequest
    from xgr_stream.types import RecommendResponse as RecommendResponse
    from xgr_stream.types import Shortfall as Shortfall
    from xgr_stream.types import Status as Status
    from xgr_stream.types import Unscored as Unscored
    from xgr_stream.types import UserEvent as UserEvent

__version__ = "0.1.0"

_HOME = {
    "CacheConfig": "config",
    "CacheState": "types",
    "Catalog": "catalog",
    "CatalogUpdate": "types",
    "ChallengerConfig": "config",
    "Engine": "engine",
    "EngineConfig": "config",
    "HistoryConfig": "config",
    "ItemFilter": "types",
    "RecommendClient": "client",
    "RecommendRequest": "types",
    "RecommendResponse": "types",
    "Recommendation": "types",
    "Recommender": "stream",
    "Shortfall": "types",
    "Status": "types",
    "StreamConfig": "config",
    "TopicNames": "config",
    "Unscored": "types",
    "UserEvent": "types",
    "WindowConfig": "config",
    "XgrError": "errors",
    "attach": "stream",
}

__all__ = [
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


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
