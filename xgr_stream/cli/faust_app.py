"""A Faust app for a worker process of ours: who has an application attaches to that."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import click
import faust
from faust.auth import SASLCredentials, SSLCredentials

from xgr_stream.cli.signals import on_first_signal
from xgr_stream.stream.connection import Connection


def make_app(connection: Connection, group_id: str, web: tuple[str, int]) -> faust.App:
    """`web`: host and port of its pages."""
    session_timeout_s = connection.session_timeout_ms / 1000
    return faust.App(
        group_id,
        broker=[f"kafka://{address}" for address in connection.bootstrap.split(",")],
        broker_credentials=_credentials(connection.security),
        consumer_group_instance_id=connection.group_instance_id,
        web_bind=web[0],
        web_port=web[1],
        consumer_auto_offset_reset="earliest",
        broker_session_timeout=session_timeout_s,
        broker_rebalance_timeout=session_timeout_s,
        broker_heartbeat_interval=session_timeout_s / 10,
    )


async def serve_app(app: faust.App) -> None:
    """Until SIGTERM or SIGINT. Raises what the app crashes with."""
    app.finalize()
    stopping = asyncio.Event()
    on_first_signal(stopping.set)
    click.echo(f"serving with Faust; metrics on http://{app.conf.web_bind}:{app.conf.web_port}/metrics")
    await app.start()
    try:
        await app.wait_for_stopped(stopping.wait())
    finally:
        await app.stop()
    if app.crash_reason is not None:
        raise app.crash_reason


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
