"""Updates of an engine's catalog, and what it answers with them."""

from __future__ import annotations

from typing import Any

import pytest

from xgr_stream.engine import Engine
from xgr_stream.engine.catalog_merge import CatalogMerge
from xgr_stream.testing import tiny_catalog
from xgr_stream.types import CatalogUpdate, Recommendation

Found = list[Recommendation]


class Log:
    """Updates of one engine's catalog, numbered as they come."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.position = 0

    def apply(self, *updates: CatalogUpdate) -> None:
        self.position += len(updates)
        self._engine.update_catalog(updates, self.position)


def by_id(found: tuple[Recommendation, ...]) -> Found:
    return sorted(found)


def merged(engine: Engine) -> CatalogMerge:
    merge = engine.begin_merge()
    assert merge is not None
    merge.run()
    return merge


def same(found: Found, expected: Found) -> None:
    assert [(item.item_id, item.sid) for item in found] == [(item.item_id, item.sid) for item in expected]
    assert [item.score for item in found] == pytest.approx([item.score for item in expected], abs=1e-4)


def served(engine: Engine, **filters: Any) -> Found:
    return by_id(engine.recommend("user", 400, beam_width=500, **filters))


def sid_of(engine: Engine, item_id: str) -> tuple[int, ...]:
    sid = engine.catalog.sid(item_id)
    assert sid is not None
    return sid


def as_made_anew(engine: Engine, *updates: CatalogUpdate) -> Engine:
    """Of a catalog in which these are merged, with the same user."""
    fresh = Engine.load(engine.model, tiny_catalog(), config=engine.config)
    fresh.apply_updates(updates)
    fresh.append("user", ["item-1", "item-2"])
    return fresh
