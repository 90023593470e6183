from typing import Any

import faust
import pytest


@pytest.fixture
def app(tmp_path: Any) -> faust.App:
    return faust.App("test", broker="kafka://127.0.0.1:1", web_enabled=False, datadir=tmp_path, autodiscover=False)
