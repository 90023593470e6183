"""Test doubles, for your tests as for ours. Imported on first use, since some of them load torch."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xgr_stream.testing.clock import ManualClock as ManualClock
    from xgr_stream.testing.models import save_tiny_model as save_tiny_model
    from xgr_stream.testing.models import tiny_catalog as tiny_catalog
    from xgr_stream.testing.models import tiny_items as tiny_items
    from xgr_stream.testing.models import tiny_model as tiny_model
    from xgr_stream.testing.null_engine import NullEngine as NullEngine

_HOME = {
    "ManualClock": "clock",
    "NullEngine": "null_engine",
    "save_tiny_model": "models",
    "tiny_catalog": "models",
    "tiny_items": "models",
    "tiny_model": "models",
}

__all__ = ["ManualClock", "NullEngine", "save_tiny_model", "tiny_catalog", "tiny_items", "tiny_model"]


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{home}"), name)
