"""TLS and SASL, against Apache Kafka: the client and both drivers reach it with them, and nobody without."""

from __future__ import annotations

import asyncio
import os
import sys
from dataclasses import replace
from pathlib import Path

import aiohttp
import pytest
from aiokafka.errors import KafkaConnectionError, KafkaError

from tests.integration.conftest import own_topics
from tests.integration.workers import ROOT, kafka_worker
from tests.kafka_node import PASSWORD, Addresses
from xgr_stream.client import RecommendClient
from xgr_stream.config import StreamConfig
from xgr_stream.errors import ConfigError, TopologyError
from xgr_stream.stream.connection import Connection, security
from xgr_stream.testing import save_tiny_model, tiny_catalog
from xgr_stream.testing.broker import Broker, OutsideBroker, free_port

MAIN = "from xgr_stream.cli.main import main; main()"


@pytest.fixture
def tls(kafka: Addresses | None) -> Broker:
    """The node, as its user with a password reaches it."""
    if kafka is None:
        pytest.skip("needs Apache Kafka: XGR_TEST_KAFKA_HOME")
    broker = OutsideBroker(kafka.tls)
    broker.connection = secured(kafka.tls, kafka.certificate)
    return broker


def secured(bootstrap: str, certificate: str, password: str = PASSWORD) -> Connection:
    return Connection(
        bootstrap, security(ca_file=certificate, sasl_mechanism="PLAIN", username="shop", password=password)
    )


async def asks(connection: Connection, config: StreamConfig) -> int:
    """What a client's request makes of its own event: how many events it saw."""
    async with RecommendClient(connection, topics=config.topics) as client:
        position = await client.send_event("user-7", "item-1")
        response = await client.recommend("user-7", timeout=20, after=position)
        return response.event_count


async def test_client_and_worker_over_tls_with_a_password(tls: Broker) -> None:
    config = StreamConfig(topics=own_topics())
    async with kafka_worker(tls, config):
        assert await asks(tls.connection, config) == 1


@pytest.mark.parametrize("driver", ["kafka", "faust"])
async def test_the_worker_command_of_each_driver(tls: Broker, kafka: Addresses, tmp_path: Path, driver: str) -> None:
    save_tiny_model(tmp_path / "model")
    catalog = tmp_path / "catalog.parquet"
    tiny_catalog().save(catalog)
    (tmp_path / "password").write_text(f"{PASSWORD}\n")
    config = StreamConfig(topics=own_topics())
    roles = ("events", "requests", "responses", "dead_letters", "changelog", "catalog")
    command = [
        *(sys.executable, "-c", MAIN, "worker", "--driver", driver, "--broker", tls.bootstrap),
        *("--model", str(tmp_path / "model"), "--catalog", str(catalog), "--group", config.topics.events),
        *("--tls-ca", kafka.certificate, "--sasl-mechanism", "PLAIN", "--sasl-username", "shop"),
        *("--sasl-password-file", str(tmp_path / "password"), "--web-port", str(port := free_port())),
        *("--instance", "worker-1", "--snapshots", str(tmp_path / "snapshots")),
        *(part for role in roles for part in ("--topic", f"{role}={getattr(config.topics, role)}")),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'kernels'}"}
    worker = await asyncio.create_subprocess_exec(*command, env=environment)
    try:
        async with asyncio.timeout(50):
            while True:
                try:
                    assert await asks(tls.connection, config) >= 1
                    break
                except TopologyError:
                    assert worker.returncode is None
                    await asyncio.sleep(0.5)
            async with aiohttp.ClientSession() as session:  # partitions that are not restored yet have no snapshot
                while (await session.get(f"http://127.0.0.1:{port}/readyz")).status != 200:  # noqa: ASYNC110
                    await asyncio.sleep(0.1)
        worker.terminate()
        assert await worker.wait() == 0
    finally:
        if worker.returncode is None:
            worker.kill()
            await worker.wait()
    assert sorted(path.name for path in (tmp_path / "snapshots").iterdir()) == [
        f"{config.topics.changelog}-{number}.snapshot" for number in range(4)
    ]


@pytest.mark.parametrize("wrong", ["password", "authority", "plaintext"])
async def test_nobody_gets_in_without(tls: Broker, kafka: Addresses, wrong: str) -> None:
    connection = {
        "password": secured(tls.bootstrap, kafka.certificate, "wrong"),
        "authority": Connection(
            tls.bootstrap, security(tls=True, sasl_mechanism="PLAIN", username="shop", password=PASSWORD)
        ),
        "plaintext": Connection(tls.bootstrap),
    }[wrong]
    admin = connection.admin()
    with pytest.raises((KafkaConnectionError, KafkaError)):
        await asyncio.wait_for(admin.start(), 20)
    await admin.close()


def test_a_password_is_never_shown() -> None:
    connection = Connection("host:1", security(sasl_mechanism="PLAIN", username="shop", password=PASSWORD))
    assert PASSWORD not in repr(connection)
    assert replace(connection).security["security_protocol"] == "SASL_PLAINTEXT"


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"sasl_mechanism": "PLAIN"}, "username and password must be given"),
        ({"username": "shop"}, "sasl_mechanism must be given"),
        ({"key_file": __file__}, "certificate_file .--tls-certificate. must be given with key_file .--tls-key."),
        ({"ca_file": __file__}, "TLS files must hold PEM"),
        ({"ca_file": "/no/such/file"}, "TLS files must hold PEM"),
    ],
)
def test_settings_that_do_not_belong_together(settings: dict[str, str], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        security(**settings)  # type: ignore[arg-type]


def test_a_setting_that_is_none_of_aiokafkas_is_refused() -> None:
    with pytest.raises(ConfigError, match="not sasl_plain_pasword"):
        Connection("host:1", {"sasl_plain_pasword": "x"})
