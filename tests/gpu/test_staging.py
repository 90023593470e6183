"""Host arrays on their way to the device, written again for each step."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from xgr_stream.engine.lanes import Lane
from xgr_stream.engine.staging import HOST_BUFFERS, Staging

pytestmark = pytest.mark.gpu

CUDA = torch.device("cuda")


def test_staged_arrays_arrive_as_they_were_though_the_device_is_behind() -> None:
    """Some of them not whole, and more of them than there are buffers."""
    staging, lane, rng = Staging({"one": (5000,), "other": (70,)}, CUDA), Lane(CUDA), np.random.default_rng(1)
    sent, arrived = [], []
    with lane.current():
        torch.cuda._sleep(50_000_000)
        for step in range(3 * HOST_BUFFERS):
            size = None if step % 3 == 0 else int(rng.integers(1, 5000))
            values = rng.integers(1, 1 << 30, 5000 if size is None else size).astype(np.int32)
            staging.send(lambda arrays, own=values: np.copyto(arrays["one"][: len(own)], own), size)
            arrived.append(staging.tensors["one"].clone())
            staging.read_by(lane.mark())
            sent.append(values)
    lane.mark().wait()
    for values, found in zip(sent, arrived, strict=True):
        assert found[: len(values)].cpu().numpy().tolist() == values.tolist()
