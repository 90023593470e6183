"""What the tests of the device thread share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.scheduler.devices import Device


@pytest.fixture
def device() -> Iterator[Device]:
    device = Device()
    device.worker.start()
    yield device
    device.worker.stop(5)
