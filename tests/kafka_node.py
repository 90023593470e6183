"""One node of Apache Kafka that listens in clear and, for those who have a password, with TLS."""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from xgr_stream.testing.broker import ApacheKafka, free_port

PASSWORD = "shop secret"
# Large messages, and compaction while a test runs. A node whose heartbeat is late on a busy machine is not fenced: it
# would leave itself out of its metadata, upon which aiokafka's coordinator fails an assertion.
# Everybody may do everything but to what a test makes a rule for.
PROPERTIES = """\
message.max.bytes=20000000
log.cleaner.backoff.ms=500
broker.session.timeout.ms=60000
authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
allow.everyone.if.no.acl.found=true
listeners=BROKER://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller},TLS://127.0.0.1:{tls}
advertised.listeners=BROKER://127.0.0.1:{port},TLS://127.0.0.1:{tls}
listener.security.protocol.map=BROKER:PLAINTEXT,CONTROLLER:PLAINTEXT,TLS:SASL_SSL
sasl.enabled.mechanisms=PLAIN
listener.name.tls.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required \
user_shop="{password}";
listener.name.tls.ssl.keystore.type=PEM
listener.name.tls.ssl.keystore.location={both}
"""


class Addresses(NamedTuple):
    """`bootstrap` in clear, `tls` for user "shop" with `PASSWORD`; `certificate`: the file of its authority."""

    bootstrap: str
    tls: str
    certificate: str


class _Node(ApacheKafka):
    """Its listeners are named in one setting, so that of TLS is added where the others' ports are known."""

    def __init__(self, home: str, both: Path) -> None:
        super().__init__(home)
        self._both = both
        self.tls_port = free_port()

    def _command(self, node: int) -> list[str]:
        port = self._ports[node]
        self._properties = PROPERTIES.format(
            port=port, controller=port + 1, tls=self.tls_port, password=PASSWORD, both=self._both
        )
        return super()._command(node)


@contextlib.contextmanager
def kafka_node(home: str) -> Iterator[Addresses]:
    with tempfile.TemporaryDirectory(prefix="xgr-tls-") as folder:
        certificate, both = _self_signed(Path(folder))
        with _Node(home, both) as node:
            yield Addresses(node.bootstrap, f"127.0.0.1:{node.tls_port}", str(certificate))


def _self_signed(folder: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1, and a file of it and its key."""
    certificate, key, both = (folder / f"{name}.pem" for name in ("certificate", "key", "both"))
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1"),
            *("-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost", "-keyout", str(key), "-out", str(certificate)),
        ],
        check=True,
        capture_output=True,
    )
    both.write_bytes(key.read_bytes() + certificate.read_bytes())
    return certificate, both
