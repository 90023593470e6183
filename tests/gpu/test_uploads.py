"""Arrays of many pieces, one after the other through the same pinned memory, on streams in turn."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from xgr_stream.engine.uploads import PIECE_BYTES, Uploads

pytestmark = pytest.mark.gpu


def test_pieces_are_the_whole() -> None:
    sender, random = Uploads(torch.device("cuda")), np.random.default_rng(0)
    sent = []
    for length in (0, 1, PIECE_BYTES // 4, 5 * PIECE_BYTES // 4 + 3, PIECE_BYTES + 1):
        for dtype in (np.int32, np.bool_):
            array = random.integers(0, 2 if dtype is np.bool_ else 1 << 30, length).astype(dtype)
            expected = array.copy()
            with torch.cuda.stream(torch.cuda.Stream()):
                tensor = sender.tensor(array, length + 7)
            array.fill(0)  # what was sent is not looked at again
            sent.append((expected, tensor))
    torch.cuda.synchronize()
    for expected, tensor in sent:
        found = tensor.cpu().numpy()
        assert np.array_equal(found[:-7], expected)
        assert not found[-7:].any()
