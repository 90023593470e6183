"""The handle that an application has on its recommender: ask it in process, whoever owns the user."""

from __future__ import annotations

import asyncio

from xgr_stream.client import RecommendClient
from xgr_stream.config import StreamConfig
from xgr_stream.errors import NotOwned, ShuttingDown
from xgr_stream.history import HistoryStore
from xgr_stream.metrics import Metrics
from xgr_stream.stream.asking import Asking
from xgr_stream.stream.models import Models
from xgr_stream.stream.runtime import Runtime
from xgr_stream.types import RecommendRequest, RecommendResponse


class Recommender(Asking):
    """Answers requests of this process: directly for the users whose partition is here, else through the request
    topic by the worker that has them. Usable while the app that it is attached to runs, on the app's event loop."""

    def __init__(self, config: StreamConfig, metrics: Metrics) -> None:
        super().__init__(config.default_timeout_ms / 1000)
        self.config = config
        self.metrics = metrics
        self.runtime: Runtime | None = None
        """None while the app does not run."""
        self._client: RecommendClient | None = None
        self._client_starting = asyncio.Lock()

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

    @property
    def models(self) -> Models:
        """The models that this worker serves: load a second one, give it users, promote it."""
        return self._running().models

    @property
    def history(self) -> HistoryStore:
        """The histories of the users whose partitions are here, which all models read."""
        return self._running().history

    # The driver's side

    def bind(self, runtime: Runtime) -> None:
        """Answer through this runtime from now on."""
        self.runtime = runtime

    async def release(self) -> None:
        """The runtime is about to stop."""
        self.runtime = None
        client, self._client = self._client, None
        if client is not None:
            await client.stop()

    def _running(self) -> Runtime:
        if self.runtime is None:
            raise RuntimeError("the app must have started before its recommender is asked")
        return self.runtime

    async def _started_client(self, runtime: Runtime) -> RecommendClient:
        """Raises `ShuttingDown` once the runtime is released. That does not wait for a client that is starting: without
        a broker it may start for ever."""
        async with self._client_starting:
            if self._client is not None and self._client.failed:
                failed, self._client = self._client, None
                await failed.stop()
            if self.runtime is not runtime:
                raise ShuttingDown("the app was stopped")
            if self._client is None:
                client = RecommendClient(
                    runtime.setup.connection,
                    topics=self.config.topics,
                    codec=self.config.codec,
                    max_message_bytes=self.config.max_answer_bytes,
                )
                await client.start()
                if self.runtime is not runtime:
                    await client.stop()
                    raise ShuttingDown("the app was stopped")
                self._client = client
            return self._client
