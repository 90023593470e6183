"""Arrays that go to the device in pieces arrive as they were."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.property.masks import assert_same_nodes, counted, legal_nodes
from xgr_stream.catalog import LiveCatalog
from xgr_stream.engine import uploads
from xgr_stream.engine.legality import LegalityTables
from xgr_stream.engine.uploads import BUFFERS, Uploads
from xgr_stream.testing.shapes import random_catalog
from xgr_stream.types import CatalogUpdate, ItemFilter

CPU = torch.device("cpu")
PIECE = 64
lengths = st.integers(0, BUFFERS * PIECE + 3) | st.sampled_from([PIECE // 4, PIECE, BUFFERS * PIECE])


@given(st.lists(st.tuples(lengths, st.sampled_from([np.int32, np.int64, np.bool_]), st.integers(0, 9)), max_size=9))
def test_pieces_are_the_whole(arrays: list[tuple[int, type[np.generic], int]]) -> None:
    sender, random = Uploads(CPU), np.random.default_rng(0)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(uploads, "PIECE_BYTES", PIECE)
        for length, dtype, room in arrays:
            array = random.integers(0, 100, length).astype(dtype)
            into = torch.full((length + room,), 1, dtype=torch.from_numpy(array).dtype)
            own = torch.from_numpy(array.copy())
            sender.copy(own, into)
            own.zero_()  # what was sent is not looked at again
            assert into.tolist() == [*array.tolist(), *[1] * room]


def test_tables_that_came_in_pieces_are_what_counting_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    """A catalog, and the next one beside it, through the path that a GPU takes."""

    def through_buffers(self: Uploads, array: np.ndarray, size: int | None = None) -> torch.Tensor:  # type: ignore[type-arg]
        tensor = torch.zeros(len(array), dtype=torch.from_numpy(array).dtype)
        self.copy(torch.from_numpy(array), tensor)
        return tensor

    monkeypatch.setattr(Uploads, "tensor", through_buffers)
    monkeypatch.setattr(uploads, "PIECE_BYTES", 4096)
    live = LiveCatalog(random_catalog((16, 40, 30), 6000, tags=5))
    wanted = [ItemFilter(), ItemFilter(deny=("tag-3",)), ItemFilter.of(live.catalog.item_ids[:40], ("tag-1", "tag-4"))]

    def check(tables: LegalityTables) -> None:
        resolved = [live.catalog.resolve(one) for one in wanted]
        assert_same_nodes(legal_nodes(tables, resolved), [counted(live.catalog, one) for one in resolved])

    tables = LegalityTables(live.catalog, CPU)
    check(tables)
    live.apply([CatalogUpdate(f"new-{i}", (i % 16, i % 40, i % 30), ("tag-4",)) for i in range(500)], 500)
    merge = live.begin()
    assert merge is not None
    merge.run()
    other = LegalityTables(merge.merged, CPU, like=tables)
    for key in tables.kept:
        other.prepare((key,))
    assert other.kept == tables.kept
    live.finish(merge)
    tables.replace(other)
    check(tables)
    tables.check_integrity()
