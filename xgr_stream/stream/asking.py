"""What a caller asks with, over Kafka or in process: one signature, one request, one way that errors are raised."""

from __future__ import annotations

import uuid
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from itertools import count
from typing import NamedTuple, cast

from xgr_stream.errors import InvalidRequest, error_from
from xgr_stream.types import ItemFilter, RecommendRequest, RecommendResponse, Status, Tags


class EventPosition(NamedTuple):
    """Where an event came to lie. Pass it as `after` to get an answer that has seen it."""

    partition: int
    offset: int


MAX_TIMEOUT_S = 86_400.0


class Asking(ABC):
    """`recommend` and `score` for whatever can `respond` to a request."""

    def __init__(self, default_timeout_s: float) -> None:
        self._default_timeout_s = default_timeout_s
        self._ids = map(f"{uuid.uuid4().hex}-{{}}".format, count())

    async def recommend(
        self,
        user_id: str,
        k: int = 10,
        *,
        beam_width: int | None = None,
        exclude: Collection[str] = (),
        allow: Collection[Tags] = (),
        deny: Collection[Tags] = (),
        seen: bool = False,
        caps: Mapping[str, int] | None = None,
        min_score: float | None = None,
        temperature: float | None = None,
        seed: int | None = None,
        tail: Sequence[int] | None = None,
        timeout: float | None = None,
        after: EventPosition | None = None,
    ) -> RecommendResponse:
        """The `k` best items for a user, as `response.items`.

        `allow`, `deny`: tags, or tuples of tags that an item must all have. `seen`: none of the user's kept history.
        `caps`: how many items may have a tag, `{"brand:*": 3}`; `min_score`: none below it; `temperature`: draw
        by chance instead of taking the best, `seed`: equally if it is equal (see `RecommendRequest`).
        If there are fewer than `k`, `response.shortfall` says why.

        `timeout` in seconds; a client's default is 1, a recommender's `StreamConfig.default_timeout_ms`. `after`: wait
        until this event, one of the same user in the events topic, was seen. `tail`: token ids to read before the next
        item instead of the checkpoint's own.
        Raises the error that an error response names: `DeadlineExceeded`, `NothingLegal`, ...
        """
        partition, offset = _position(after)
        return await self._answer(
            RecommendRequest(
                next(self._ids),
                user_id,
                k,
                beam_width,
                ItemFilter.of(exclude, allow, deny, seen),
                timeout_ms=self._timeout_ms(timeout),
                min_offset=offset,
                min_offset_partition=partition,
                tail=tail,
                caps=() if caps is None else caps,
                min_score=min_score,
                temperature=temperature,
                seed=seed,
            )
        )

    async def score(
        self,
        user_id: str,
        items: Collection[str],
        *,
        tail: Sequence[int] | None = None,
        timeout: float | None = None,
        after: EventPosition | None = None,
    ) -> RecommendResponse:
        """The scores of these items, as `recommend` would give them: `response.items` are those that have one, best
        first; `response.unscored` says why others have none. At most 1,024 items; the rest as in `recommend`."""
        partition, offset = _position(after)
        return await self._answer(
            RecommendRequest(
                next(self._ids),
                user_id,
                timeout_ms=self._timeout_ms(timeout),
                min_offset=offset,
                min_offset_partition=partition,
                tail=tail,
                candidates=cast("Sequence[str]", () if items is None else items),  # None would be a search
            )
        )

    async def _answer(self, request: RecommendRequest) -> RecommendResponse:
        response = await self.respond(request)
        if response.status is Status.ERROR:
            raise error_from(response.error, response.message)
        return response

    def _timeout_ms(self, timeout: float | None) -> int:
        seconds = self._default_timeout_s if timeout is None else timeout
        if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds < MAX_TIMEOUT_S:
            raise InvalidRequest(f"timeout must be a number of seconds from 0 to {MAX_TIMEOUT_S:.0f}, not {timeout!r}")
        return round(seconds * 1000)

    @abstractmethod
    async def respond(self, request: RecommendRequest) -> RecommendResponse:
        """The response to a request, an error response too."""


def _position(after: EventPosition | None) -> EventPosition | tuple[None, None]:
    if after is not None and not isinstance(after, EventPosition):
        raise InvalidRequest(f"after must be what send_event returned, not {after!r}")
    return after or (None, None)
