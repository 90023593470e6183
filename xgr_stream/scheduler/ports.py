"""What the scheduler asks of an engine: `xgr_stream.engine.Engine` has it, `xgr_stream.testing.NullEngine` too."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from typing import Protocol

from xgr_stream.history import HistoryView
from xgr_stream.types import RecommendRequest, RecommendResponse


class WarmReport(Protocol):
    """What one `warm` did."""

    @property
    def users(self) -> int: ...
    @property
    def tokens(self) -> int: ...
    @property
    def prepared_s(self) -> float:
        """That the host took before the device could begin; 0 where `seconds` have it."""
        ...

    @property
    def seconds(self) -> float | None:
        """That the device took; None while it is still at it."""
        ...


class PendingAnswers(Protocol):
    """The responses to requests that the device works on."""

    def done(self) -> bool:
        """Whether `finish` would not block."""
        ...

    def finish(self) -> list[RecommendResponse]:
        """The responses, in the order of the requests. To be called once."""
        ...


class TierStats(Protocol):
    """What is behind the device's memory; what is demoted and below counts since the engine was loaded."""

    @property
    def host_users(self) -> int: ...
    @property
    def host_bytes_used(self) -> int: ...
    @property
    def host_bytes_budget(self) -> int: ...
    @property
    def file_users(self) -> int: ...
    @property
    def file_bytes_used(self) -> int: ...
    @property
    def file_bytes_budget(self) -> int: ...
    @property
    def demoted(self) -> int: ...
    @property
    def demoted_bytes(self) -> int: ...
    @property
    def demoted_s(self) -> float: ...
    @property
    def promoted(self) -> int: ...
    @property
    def promoted_bytes(self) -> int: ...
    @property
    def promoted_s(self) -> float: ...
    @property
    def recomputed(self) -> int: ...
    @property
    def dropped(self) -> int: ...
    @property
    def file_written(self) -> int: ...
    @property
    def file_read(self) -> int: ...
    @property
    def file_failures(self) -> int: ...


class EngineStats(Protocol):
    """The engine's state; `beams_dead` and `invalid_items` count since it was loaded."""

    @property
    def users_warm(self) -> int: ...
    @property
    def bytes_used(self) -> int: ...
    @property
    def bytes_budget(self) -> int: ...
    @property
    def beams_dead(self) -> int: ...
    @property
    def invalid_items(self) -> int: ...
    @property
    def tiers(self) -> TierStats | None: ...


class DeviceEngine(Protocol):
    """Called by one thread only, but for `version` and `pending_tokens`.

    `begin` and `warm` raise `OutOfMemory`, or torch's own error, for what the device has no memory for; the engine is
    then as it was, but for prefixes that it dropped.
    """

    @property
    def version(self) -> str:
        """What its answers name as their model."""
        ...

    def begin(self, requests: Sequence[tuple[RecommendRequest, HistoryView | None]]) -> PendingAnswers:
        """Start answering all of these together."""
        ...

    def warm(self, views: Sequence[HistoryView]) -> WarmReport:
        """Bring these users' prefixes up to their views, or start to."""
        ...

    def prefilling(self, view: HistoryView, chunk_tokens: int) -> Generator[WarmReport, None, None]:
        """Bring a user up to `view` who has no prefix, in steps of at most so many tokens; the last one's `users` is 1.
        Anything may be asked in between. No steps: not possible, or not worth it."""
        ...

    def expect(self, views: Sequence[HistoryView]) -> None:
        """These users have had events: bring back what is not at hand of them, if that is worth it."""
        ...

    def pending_tokens(self, view: HistoryView) -> int:
        """Tokens that warming this user up to `view` computes, at most. May be called from any thread."""
        ...

    def is_resident(self, user_id: str) -> bool: ...

    def forget(self, user_ids: Iterable[str]) -> None: ...

    def stats(self) -> EngineStats: ...
