"""Shorthands for driving an engine in the property tests."""

from __future__ import annotations

from collections.abc import Sequence

from xgr_stream.engine import Engine
from xgr_stream.types import NO_FILTER, ItemFilter, RecommendRequest, RecommendResponse, UserEvent

History = Sequence[tuple[str, str | None]]


def record(engine: Engine, user_id: str, history: History) -> None:
    """These events happened; nothing is computed yet."""
    for item, action in history:
        engine.history.apply(UserEvent(user_id, item, action))


def append(engine: Engine, user_id: str, history: History) -> None:
    """These events happened, and the user is warm."""
    engine.append(user_id, [item for item, _ in history], [action for _, action in history])


def ask(engine: Engine, *requests: tuple[str, int, int, ItemFilter] | tuple[str, int, int]) -> list[RecommendResponse]:
    """(user, k, beam width, filter) in one batch."""
    batch = []
    for i, (user_id, k, width, *rest) in enumerate(requests):
        request = RecommendRequest(f"request-{i}", user_id, k, width, rest[0] if rest else NO_FILTER)
        batch.append((request, engine.history.view(user_id)))
    return engine.answer(batch)
