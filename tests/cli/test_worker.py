"""The worker command with a model, a catalog and topics that do not belong together: it says so and exits with 1."""

from __future__ import annotations

import gc
import json
import socket
from collections.abc import Callable
from pathlib import Path

import click
import pytest
from aiokafka.errors import NodeNotReadyError
from click.testing import CliRunner

from xgr_stream.cli.challenger import challenger_options
from xgr_stream.cli.main import main
from xgr_stream.config import ChallengerConfig
from xgr_stream.testing import save_tiny_model, tiny_catalog
from xgr_stream.testing.broker import free_port


def _of_other_levels(shop: Path) -> None:
    tiny_catalog((8, 8)).save(shop / "catalog.parquet")


def _of_other_codes(shop: Path) -> None:
    tiny_catalog((8, 8, 16)).save(shop / "catalog.parquet")


def _not_a_catalog(shop: Path) -> None:
    (shop / "catalog.parquet").write_bytes(b"PAR1 and nothing else")


def _of_a_small_vocabulary(shop: Path) -> None:
    settings = json.loads((shop / "model" / "xgr.json").read_text())
    settings["item_tokens"] = {"offset": 1_000_000}
    (shop / "model" / "xgr.json").write_text(json.dumps(settings))


def _without_weights(shop: Path) -> None:
    for path in (shop / "model").glob("*.safetensors"):
        path.unlink()


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (_of_other_levels, ("2 levels", "have 3", "build the catalog")),
        (_of_other_codes, ("16 codes at level 2", "for 8", "build the catalog")),
        (_not_a_catalog, ("catalog.parquet",)),
        (_of_a_small_vocabulary, ("vocab",)),
        (_without_weights, ("safetensors",)),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, spoil: Callable[[Path], None], says: tuple[str, ...]) -> None:
    save_tiny_model(tmp_path / "model")
    tiny_catalog().save(tmp_path / "catalog.parquet")
    spoil(tmp_path)
    options = ["--model", str(tmp_path / "model"), "--catalog", str(tmp_path / "catalog.parquet")]
    result = CliRunner().invoke(main, ["worker", "--broker", "127.0.0.1:1", *options])
    assert result.exit_code == 1
    assert result.output.startswith(("Error: checkpoint: ", "Error: catalog: ", "Error: config: "))
    assert all(part in result.output for part in says), result.output


def _run(shop: Path, *options: str) -> str:
    """What the command says when it ends with 1, as something to read: no traceback."""
    save_tiny_model(shop / "model")
    tiny_catalog().save(shop / "catalog.parquet")
    named = ["--model", str(shop / "model"), "--catalog", str(shop / "catalog.parquet")]
    result = CliRunner().invoke(main, ["worker", "--broker", "127.0.0.1:1", *named, *options])
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit), result.exception
    return result.output


def test_a_broker_that_is_not_there_is_named(tmp_path: Path) -> None:
    assert "Error: no broker at 127.0.0.1:1 (--broker): " in _run(tmp_path, "--web-port", str(free_port()))


def test_a_broker_that_goes_away_while_the_worker_starts_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(*_: object) -> int:
        raise NodeNotReadyError("node 1 is not ready")

    monkeypatch.setattr("xgr_stream.stream.runtime.ensure_topics", away)
    assert "Error: no broker at 127.0.0.1:1 (--broker): " in _run(tmp_path, "--web-port", str(free_port()))


def test_a_port_in_use_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.listen()
        port = held.getsockname()[1]
        said = _run(tmp_path, "--web-port", str(port))
    assert f"Error: config: web host and port must be free to listen on, and 127.0.0.1:{port} is not: " in said
    gc.collect()
    assert "Unclosed AIOKafkaConsumer" not in caplog.text  # it would be what is said last


def test_a_group_that_faust_can_name_no_topic_after_is_refused(tmp_path: Path) -> None:
    save_tiny_model(tmp_path / "model")
    tiny_catalog().save(tmp_path / "catalog.parquet")
    shop = ("--model", str(tmp_path / "model"), "--catalog", str(tmp_path / "catalog.parquet"))
    result = CliRunner().invoke(main, ["worker", *shop, "--driver", "faust", "--group", "a b/ü"])
    assert result.exit_code == 2, result.output
    assert "--group: Faust names a topic 'a b/ü-__assignor-__leader', which" in result.output


@pytest.mark.parametrize("mib", ["999999999", "9999999999999", "9" * 30])
def test_a_cache_that_can_t_be_had_is_named(tmp_path: Path, mib: str) -> None:
    says = f"Error: config: cache.budget_bytes must be memory that there is, not {int(mib) << 20} bytes: "
    assert says in _run(tmp_path, "--cache-mib", mib)


def test_one_second_model_at_a_time(tmp_path: Path) -> None:
    save_tiny_model(tmp_path / "model")
    tiny_catalog().save(tmp_path / "catalog.parquet")
    options = [f"--{name}={tmp_path / 'model'}" for name in ("model", "canary", "shadow")]
    result = CliRunner().invoke(main, ["worker", *options, f"--catalog={tmp_path / 'catalog.parquet'}"])
    assert result.exit_code == 2
    assert "--canary or --shadow, not both" in result.output


@pytest.mark.parametrize(("option", "role"), [("--canary", "canary"), ("--shadow", "shadow")])
def test_the_options_make_a_challenger(tmp_path: Path, option: str, role: str) -> None:
    @click.command()
    @challenger_options
    def command(challenger: ChallengerConfig | None) -> None:
        click.echo(repr(challenger))

    said = CliRunner().invoke(command, [option, str(tmp_path), "--fraction", "0.2", "--challenger-cache-mib", "7"])
    assert said.output.strip() == repr(ChallengerConfig(str(tmp_path), role, 0.2, cache_bytes=7 << 20))  # type: ignore[arg-type]
    assert CliRunner().invoke(command, []).output.strip() == "None"


@pytest.mark.parametrize(
    ("option", "value", "shown"),
    [
        *(("--session-timeout", value, str(float(value))) for value in ("nan", "inf", "1e9")),
        *((option, "", "''") for option in ("--group", "--instance", "--sasl-username")),
        *((option, "a\udcff", "'a\\udcff'") for option in ("--group", "--instance", "--sasl-username")),
    ],
)
def test_an_option_that_brokers_cannot_be_told_is_refused_at_once(
    tmp_path: Path, option: str, value: str, shown: str
) -> None:
    save_tiny_model(tmp_path / "model")
    tiny_catalog().save(tmp_path / "catalog.parquet")
    shop = ("--model", str(tmp_path / "model"), "--catalog", str(tmp_path / "catalog.parquet"))
    result = CliRunner().invoke(main, ["worker", "--broker", "127.0.0.1:1", *shop, option, value])
    assert result.exit_code == 2, result.output
    assert f"Invalid value for '{option}': {shown}" in result.output


def test_a_password_that_is_no_text_is_refused_by_its_file(tmp_path: Path) -> None:
    (tmp_path / "password").write_bytes(b"secret\xff\n")
    options = ("--sasl-mechanism", "PLAIN", "--sasl-username", "shop", "--sasl-password-file", f"{tmp_path}/password")
    result = CliRunner().invoke(main, ["doctor", *options])
    assert result.exit_code == 2, result.output
    assert f"Invalid value for --sasl-password-file: {tmp_path}/password must be UTF-8" in result.output
    assert "secret" not in result.output
