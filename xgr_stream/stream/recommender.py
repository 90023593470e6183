"""The handle that an application has on its recommender: ask it in process, whoever owns the user."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Sequence

from xgr_stream.client import EventPosition, RecommendClient
from xgr_stream.config import StreamConfig
from xgr_stream.errors import NotOwned, error_from
from xgr_stream.metrics import Metrics
from xgr_stream.stream.runtime import Runtime
from xgr_stream.types import ItemFilter, RecommendRequest, RecommendResponse, Status


class Recommender:
    """Answers requests of this process: directly for the users whose partition is here, else through the request
    topic by the worker that has them. Usable while the app that it is attached to runs, on the app's event loop."""

    def __init__(self, config: StreamConfig, metrics: Metrics) -> None:
        self.config = config
        self.metrics = metrics
        self._runtime: Runtime | None = None
        self._client: RecommendClient | None = None
        self._client_starting = asyncio.Lock()

    async def recommend(
        self,
        user_id: str,
        k: int = 10,
        *,
        beam_width: int | None = None,
        exclude: Sequence[str] = (),
        allow: Sequence[str] = (),
        deny: Sequence[str] = (),
        timeout: float | None = None,
        after: EventPosition | None = None,
    ) -> RecommendResponse:
        """The `k` best items for a user, as `response.items`.

        `timeout` in seconds, `StreamConfig.default_timeout_ms` by default; `after`: wait until this event was seen.
        Raises the error that an error response names: `DeadlineExceeded`, `NothingLegal`, ...
        """
        request = RecommendRequest(
            uuid.uuid4().hex,
            user_id,
            k,
            beam_width,
            ItemFilter.of(exclude, allow, deny),
            timeout_ms=None if timeout is None else round(timeout * 1000),
            min_offset=None if after is None else after.offset,
        )
        response = await self.respond(request)
        if response.status is Status.ERROR:
            raise error_from(response.error, response.message)
        return response

    async def respond(self, request: RecommendRequest) -> RecommendResponse:
        """The response to a request, an error response too."""
        runtime = self._running()
        if runtime.processor.owns(request.user_id):
            response = await asyncio.wrap_future(runtime.submit(request))
            if response.error != NotOwned.code:  # else the partition was revoked meanwhile: ask its new owner
                return response
        client = await self._started_client(runtime)
        timeout_ms = self.config.default_timeout_ms if request.timeout_ms is None else request.timeout_ms
        return await client.respond(request, timeout=timeout_ms / 1000)

    # The driver's side

    def bind(self, runtime: Runtime) -> None:
        """Answer through this runtime from now on."""
        self._runtime = runtime

    async def release(self) -> None:
        """The runtime is about to stop."""
        self._runtime = None
        client, self._client = self._client, None
        if client is not None:
            await client.stop()

    def _running(self) -> Runtime:
        if self._runtime is None:
            raise RuntimeError("the app must have started before its recommender is asked")
        return self._runtime

    async def _started_client(self, runtime: Runtime) -> RecommendClient:
        async with self._client_starting:
            if self._client is None:
                client = RecommendClient(runtime.setup.connection, topics=self.config.topics, codec=self.config.codec)
                await client.start()
                self._client = client
            return self._client
