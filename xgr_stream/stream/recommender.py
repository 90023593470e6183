"""The handle that an application has on its recommender: ask it in process, whoever owns the user."""

from __future__ import annotations

import asyncio
import logging

from xgr_stream.client import RecommendClient
from xgr_stream.config import StreamConfig
from xgr_stream.errors import DeadlineExceeded, NotOwned, ShuttingDown
from xgr_stream.history import HistoryStore
from xgr_stream.metrics import Metrics
from xgr_stream.stream.asking import Asking
from xgr_stream.stream.models import Models
from xgr_stream.stream.runtime import Runtime
from xgr_stream.types import RecommendRequest, RecommendResponse

logger = logging.getLogger(__name__)


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
        self._starting: asyncio.Task[RecommendClient] | None = None

    async def respond(self, request: RecommendRequest) -> RecommendResponse:
        """The response to a request, an error response too. Raises `DeadlineExceeded` if none comes in time from the
        worker that has the user."""
        runtime, loop = self._running(), asyncio.get_running_loop()
        timeout_ms = self.config.default_timeout_ms if request.timeout_ms is None else request.timeout_ms
        ends = loop.time() + timeout_ms / 1000
        if runtime.processor.owns(request.user_id):
            response = await asyncio.wrap_future(runtime.submit(request))
            if response.error != NotOwned.code:  # else the partition was revoked meanwhile: ask its new owner
                return response
        client = await self._started_client(runtime, ends)
        return await client.respond(request, timeout=max(0.0, ends - loop.time()))

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
        """The runtime is about to stop. A client that is starting is not waited for: it stops itself."""
        self.runtime = None
        client, self._client = self._client, None
        starting, self._starting = self._starting, None
        if starting is not None:
            starting.cancel()
        if client is not None:
            await client.stop()

    def _running(self) -> Runtime:
        if self.runtime is None:
            raise RuntimeError("the app must have started before its recommender is asked")
        return self.runtime

    async def _started_client(self, runtime: Runtime, ends: float) -> RecommendClient:
        """Raises `ShuttingDown` once the runtime is released, and `DeadlineExceeded` at `ends`. All wait for one start,
        which goes on after them: without a broker it takes longer than any of them has."""
        if self.runtime is not runtime:
            raise ShuttingDown("the app was stopped")
        if self._client is not None and not self._client.failed:
            return self._client
        starting = self._starting
        if starting is None or starting.done():
            starting = self._starting = asyncio.create_task(self._start(runtime), name="xgr-client")
            starting.add_done_callback(_note_failure)
        done, _ = await asyncio.wait({starting}, timeout=ends - asyncio.get_running_loop().time())
        if self.runtime is not runtime:
            raise ShuttingDown("the app was stopped")
        if not done:
            raise DeadlineExceeded("the deadline passed before there was a connection to ask another worker by")
        return starting.result()

    async def _start(self, runtime: Runtime) -> RecommendClient:
        failed, self._client = self._client, None
        if failed is not None:
            await asyncio.shield(failed.stop())  # to its end, if this is cancelled
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
        return client


def _note_failure(starting: asyncio.Task[RecommendClient]) -> None:
    """Those who waited for it may all have gone."""
    if not starting.cancelled() and (error := starting.exception()) is not None:
        logger.warning("other workers can't be asked: %s", error)
