"""The group: what it lists, what it loads, and how an error of ours reaches the terminal."""

from __future__ import annotations

import subprocess
import sys
import types
from pathlib import Path

import click
import pytest
from aiokafka.errors import IncompatibleBrokerVersion, KafkaConnectionError, TopicAuthorizationFailedError
from click.testing import CliRunner

import xgr_stream
from xgr_stream.cli import histories
from xgr_stream.cli import main as cli
from xgr_stream.errors import CatalogError


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> None:
    @click.command()
    def failing() -> None:
        raise CatalogError("codes must be (64, 64, 64), not (8,)")

    module = types.ModuleType("xgr_stream.cli.failing")
    module.failing = failing  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "xgr_stream.cli.failing", module)
    monkeypatch.setitem(cli.SUBCOMMANDS, "failing", "Fails.")


def test_help_lists_every_subcommand() -> None:
    result = CliRunner().invoke(cli.main, ["--help"])
    assert result.exit_code == 0
    for name, summary in cli.SUBCOMMANDS.items():
        assert name in result.output
        assert summary.split()[0] in result.output


@pytest.mark.parametrize("name", sorted(cli.SUBCOMMANDS))
def test_every_subcommand_loads_and_has_help(name: str) -> None:
    result = CliRunner().invoke(cli.main, [name, "--help"])
    assert result.exit_code == 0, result.output
    assert result.output.startswith(f"Usage: main {name}")


def test_every_subcommand_is_a_module() -> None:
    folder = Path(xgr_stream.__file__).parent / "cli"
    assert set(cli.SUBCOMMANDS) <= {path.stem for path in folder.glob("*.py")}


def test_an_unknown_subcommand_is_a_usage_error() -> None:
    result = CliRunner().invoke(cli.main, ["evalute"])
    assert result.exit_code == 2
    assert "evalute" in result.output


@pytest.mark.usefixtures("failing")
def test_an_error_of_ours_is_a_message_and_no_traceback() -> None:
    result = CliRunner().invoke(cli.main, ["failing"])
    assert result.exit_code == 1
    assert result.output == "Error: catalog: codes must be (64, 64, 64), not (8,)\n"


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (TopicAuthorizationFailedError("events"), "Kafka refuses it: [Error 29] TopicAuthorizationFailedError: events"),
        (
            IncompatibleBrokerVersion("no DeleteRecords"),
            "Kafka refuses it: IncompatibleBrokerVersion: no DeleteRecords",
        ),
        (KafkaConnectionError("closed"), "no broker answers: KafkaConnectionError: closed"),
    ],
)
def test_an_error_of_kafka_is_a_message_and_no_traceback(
    monkeypatch: pytest.MonkeyPatch, error: Exception, says: str
) -> None:
    def refused(*_: object) -> None:
        raise error

    monkeypatch.setattr(histories, "check_user_id", refused)
    result = CliRunner().invoke(cli.main, ["history", "inspect", "user-1"])
    assert (result.exit_code, result.output) == (1, f"Error: {says}\n")


def test_it_runs_as_a_module_too() -> None:
    command = [sys.executable, "-m", "xgr_stream.cli.main", "--version"]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert run.stdout == f"xgr-stream, version {xgr_stream.__version__}\n"


def test_the_version_is_the_package_s() -> None:
    result = CliRunner().invoke(cli.main, ["--version"])
    assert result.output == f"xgr-stream, version {xgr_stream.__version__}\n"
