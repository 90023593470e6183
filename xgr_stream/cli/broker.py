"""The options of every command that talks to brokers, and the connection that they make."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from xgr_stream.cli.kinds import Name
from xgr_stream.config import StreamConfig, TopicNames

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)

_OPTIONS = (
    click.option("--broker", default="localhost:9092", help="HOST:PORT, several with commas."),
    click.option("--tls", is_flag=True, help="Encrypted; the broker's certificate by the system's authorities."),
    click.option("--tls-ca", type=_FILE, help="PEM of the authority that signed the broker's certificate."),
    click.option("--tls-certificate", type=_FILE, help="PEM of a certificate of one's own."),
    click.option("--tls-key", type=_FILE, help="PEM of its key, if it is in another file."),
    click.option(
        "--sasl-mechanism",
        type=click.Choice(["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"]),
        help="With a user name and a password.",
    ),
    click.option("--sasl-username", type=Name(), help="Who to be for the broker."),
    click.option("--sasl-password-file", type=_FILE, help="The first line is the password: others see a command line."),
)


def broker_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command these options; it gets `connection` for them. Goes nearest to the function."""

    @functools.wraps(command)
    def connected(
        *,
        broker: str,
        tls: bool,
        tls_ca: Path | None,
        tls_certificate: Path | None,
        tls_key: Path | None,
        sasl_mechanism: str | None,
        sasl_username: str | None,
        sasl_password_file: Path | None,
        **options: Any,
    ) -> Any:
        from xgr_stream.stream.connection import Connection, security

        settings = security(
            tls=tls,
            ca_file=tls_ca,
            certificate_file=tls_certificate,
            key_file=tls_key,
            sasl_mechanism=sasl_mechanism,
            username=sasl_username,
            password=None if sasl_password_file is None else _first_line(sasl_password_file),
        )
        return command(connection=Connection(broker, settings), **options)

    for option in reversed(_OPTIONS):
        connected = option(connected)
    return connected


def topic_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """`--topic ROLE=NAME`, as `topics`."""
    option = click.option(
        "--topic", "topics", multiple=True, callback=_topics, metavar="ROLE=NAME", help="Name a topic otherwise."
    )
    return option(command)


def _first_line(path: Path) -> str:
    try:
        return path.read_text("utf-8").partition("\n")[0]
    except UnicodeDecodeError as error:
        raise click.BadParameter(f"{path} must be UTF-8: {error}", param_hint="--sasl-password-file") from error


def _topics(context: click.Context, option: click.Parameter, pairs: tuple[str, ...]) -> TopicNames:
    names = {}
    for pair in pairs:
        role, _, name = pair.partition("=")
        if role not in TopicNames.__dataclass_fields__ or not name:
            roles = ", ".join(TopicNames.__dataclass_fields__)
            raise click.BadParameter(f"must be ROLE=NAME with a role of {roles}, not {pair!r}")
        names[role] = name
    from xgr_stream.stream.batches import bound_topics

    topics = TopicNames(**names)
    bound_topics(topics, StreamConfig().max_message_bytes)
    return topics
