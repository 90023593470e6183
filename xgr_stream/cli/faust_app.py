"""A Faust app for a worker process of ours: who has an application attaches to that."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any, NoReturn

import click
import faust
from faust.auth import SASLCredentials, SSLCredentials

from xgr_stream.cli.exit_codes import exit_code
from xgr_stream.cli.signals import FirstSignal
from xgr_stream.stream.connection import Connection
from xgr_stream.stream.health import cannot_listen

REQUEST_TIMEOUT_S = 90.0
"""Faust's own."""
JOIN_ROOM_S = 30.0
"""By how much a request may take longer than a rebalance: who joins the group waits for that in one request."""
END_S = 5.0
"""For the ends of all clients, behind what the shutdown timeout is for: to answer what was taken."""


class _WorkerApp(faust.App):
    def _create_directories(self) -> None:
        """None, wherever the process happens to run: they are for tables, which a worker has none of."""


def make_app(connection: Connection, group_id: str, web: tuple[str, int]) -> faust.App:
    """`web`: host and port of its pages."""
    session_timeout_s = connection.session_timeout_ms / 1000
    instance = connection.group_instance_id
    return _WorkerApp(
        group_id,
        broker=[f"kafka://{address}" for address in connection.bootstrap.split(",")],
        broker_credentials=_credentials(connection.security),
        consumer_group_instance_id=instance,
        # Faust asserts that a member which comes back under its name has the address that it had.
        canonical_url=None if instance is None else f"http://{instance}",
        web_bind=web[0],
        web_port=web[1],
        consumer_auto_offset_reset="earliest",
        broker_session_timeout=session_timeout_s,
        broker_rebalance_timeout=session_timeout_s,
        broker_heartbeat_interval=session_timeout_s / 10,
        broker_request_timeout=max(REQUEST_TIMEOUT_S, session_timeout_s + JOIN_ROOM_S),
    )


async def serve_app(app: faust.App, shutdown_timeout_s: float, signals: FirstSignal) -> None:
    """Until SIGTERM or SIGINT. Raises what the app crashes with, `ConfigError` for a web port in use. It may take
    `END_S` more than its shutdown timeout to end."""
    app.finalize()
    web: Any = app.web
    web.start_server = partial(_listen, web.start_server, app.conf.web_bind, app.conf.web_port)
    stopping = asyncio.Event()
    signals.calls(stopping.set)
    click.echo(f"serving with Faust; metrics on http://{app.conf.web_bind}:{app.conf.web_port}/metrics")
    told = asyncio.create_task(stopping.wait())
    starting = asyncio.create_task(app.start())
    try:
        await asyncio.wait({starting, told}, return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            starting.result()
            await app.wait_for_stopped(told)
    finally:
        starting.cancel()
        told.cancel()
        await stop_app(app, shutdown_timeout_s + END_S)
    if app.crash_reason is not None:
        raise app.crash_reason


async def _listen(start_server: Callable[[], Awaitable[None]], host: str, port: int) -> None:
    try:
        await start_server()
    except OSError as error:
        raise cannot_listen(host, port, error) from error


async def stop_app(app: faust.App, timeout_s: float) -> None:
    """An app that has not ended by then takes the process with it: without a broker Faust tries its last commit for
    ever, in a thread of its own."""
    ending = asyncio.create_task(app.stop())
    await asyncio.wait({ending}, timeout=timeout_s)
    if not ending.done():
        _exit_at_once(app.crash_reason)
    ending.result()


def _exit_at_once(crash_reason: BaseException | None) -> NoReturn:
    click.echo("Faust did not end in time; what it has not committed comes again", err=True)
    if crash_reason is not None:
        click.echo(f"Error: {crash_reason}", err=True)
    sys.stdout.flush()
    os._exit(0 if crash_reason is None else exit_code(crash_reason))


def _credentials(security: Mapping[str, Any]) -> Any:
    """Faust's own form of `Connection.security`."""
    context = security.get("ssl_context")
    if "sasl_mechanism" in security:
        return SASLCredentials(
            username=security["sasl_plain_username"],
            password=security["sasl_plain_password"],
            mechanism=security["sasl_mechanism"],
            ssl_context=context,
        )
    return None if context is None else SSLCredentials(context)
