"""What a worker's web port says of it: `/metrics`, `/healthz`, `/readyz`; and a server for workers without an app."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import NamedTuple

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from xgr_stream.errors import ConfigError
from xgr_stream.metrics import Metrics
from xgr_stream.stream.runtime import Runtime

CLOSE_TIMEOUT_S = 1.0


class Page(NamedTuple):
    """An answer: 200 or 503, and what it holds."""

    status: int
    content_type: str
    body: bytes


class Pages:
    """The pages of one worker. `runtime` gives its runtime, None while there is none."""

    def __init__(self, runtime: Callable[[], Runtime | None], metrics: Metrics) -> None:
        self._runtime = runtime
        self._metrics = metrics

    def metrics(self) -> Page:
        return Page(200, CONTENT_TYPE_LATEST.split(";")[0], generate_latest(self._metrics.registry))

    def healthz(self) -> Page:
        """Whether the worker lives: that this is answered shows that its event loop turns."""
        runtime = self._runtime()
        if runtime is None:
            return Page(503, "text/plain", b"not started\n")
        ill = runtime.illness()
        return Page(200, "text/plain", b"ok\n") if ill is None else Page(503, "text/plain", f"{ill}\n".encode())

    def readyz(self) -> Page:
        """Whether it serves all its partitions, and what keeps it from that."""
        runtime = self._runtime()
        readiness = {"ready": False} if runtime is None else runtime.readiness()
        return Page(200 if readiness["ready"] else 503, "application/json", json.dumps(readiness).encode())

    def by_path(self) -> dict[str, Callable[[], Page]]:
        return {"/metrics": self.metrics, "/healthz": self.healthz, "/readyz": self.readyz}


@asynccontextmanager
async def served(
    pages: Pages,
    host: str,
    port: int,
    control: Mapping[str, Callable[[web.Request], Awaitable[web.Response]]] | None = None,
) -> AsyncIterator[None]:
    """Serve the pages on this event loop while the context is entered, and `control`, by HTTP method, on `/models`.
    Raises `ConfigError` for a port in use."""
    app = web.Application()
    for method, handler in (control or {}).items():
        app.router.add_route(method, "/models", handler)
    for path, page in pages.by_path().items():
        app.router.add_get(path, _handler(page))
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=CLOSE_TIMEOUT_S)
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, host, port).start()
        except OSError as error:
            raise cannot_listen(host, port, error) from error
        yield
    finally:
        await runner.cleanup()


def cannot_listen(host: str, port: int, error: OSError) -> ConfigError:
    return ConfigError(f"web host and port must be free to listen on, and {host}:{port} is not: {error}")


def _handler(page: Callable[[], Page]) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def handle(_: web.Request) -> web.Response:
        status, content_type, body = page()
        return web.Response(status=status, content_type=content_type, body=body)

    return handle
