"""Masks and exclusions where memory is lacking: nothing is taken for made that is not."""

from __future__ import annotations

import contextlib
from itertools import count
from typing import Any

import pytest
import torch

from tests.property.masks import assert_same_nodes, counted, legal_nodes
from xgr_stream.catalog import Catalog, LiveCatalog
from xgr_stream.engine.exclusions import Exclusions
from xgr_stream.engine.item_tensors import ItemTensors
from xgr_stream.engine.legality import MAX_MASKS, LegalityTables
from xgr_stream.testing import tiny_catalog
from xgr_stream.types import CatalogUpdate, ItemFilter

CPU = torch.device("cpu")


def tagged(tags: int) -> Catalog:
    """Three items of each tag."""
    items = range(3 * tags)
    columns = {"item_id": [f"item-{i}" for i in items], "sid": [[i % 9, i // 9] for i in items]}
    return Catalog.from_table({**columns, "tags": [[f"tag-{i % tags}"] for i in items]}, codes=(9, 9))


def check(tables: LegalityTables, catalog: Catalog, *wanted: ItemFilter) -> None:
    resolved = [catalog.resolve(one) for one in wanted]
    assert_same_nodes(legal_nodes(tables, resolved), [counted(catalog, one) for one in resolved])
    tables.check_integrity()


@pytest.mark.parametrize("kept", [1, MAX_MASKS - 1, MAX_MASKS + 4])
@pytest.mark.parametrize("part", ["allow", "nodes", "_allocate_masks"])
def test_a_mask_that_there_was_no_memory_for_is_made_when_it_is_asked_for_again(
    kept: int, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`kept`: masks that there are before, so that it takes a free place or one of another's."""
    catalog = tagged(22)
    tables = LegalityTables(catalog, CPU)
    others = [ItemFilter(allow=(f"tag-{i}",)) for i in range(kept)]
    for other in others:
        check(tables, catalog, other)
    wanted = ItemFilter(allow=("tag-21",)), ItemFilter(allow=("tag-20",))
    with monkeypatch.context() as patch:
        patch.setattr(LegalityTables if part == "_allocate_masks" else ItemTensors, part, no_memory)
        with contextlib.suppress(torch.OutOfMemoryError):  # there may be room
            tables.bring([catalog.resolve(one) for one in wanted])
    live = LiveCatalog(catalog)
    live.apply([CatalogUpdate("new", (7, 7), ("tag-21",))], 1)  # a delta, with a row that is nobody's
    live.join()
    check(tables, catalog, *wanted)
    for other in others:
        check(tables, catalog, other, *wanted)


@pytest.mark.parametrize("flips", ["few", "more than are remembered"])
def test_flips_that_there_was_no_memory_for_are_followed_later(flips: str, monkeypatch: pytest.MonkeyPatch) -> None:
    catalog = tagged(4)
    tables = LegalityTables(catalog, CPU)
    check(tables, catalog, ItemFilter(allow=("tag-1",)))
    monkeypatch.setattr("xgr_stream.catalog.catalog.FLIPS_REMEMBERED", 1)
    for _ in range(1 if flips == "few" else 3):
        catalog.set_available(["item-1", "item-5", "item-2"], False)
        catalog.set_available(["item-2"], True)
    with monkeypatch.context() as patch:
        for name in ("mask_flip", "torch.from_numpy"):
            patch.setattr(f"xgr_stream.engine.legality.{name}", no_memory)
        with pytest.raises(torch.OutOfMemoryError):
            tables.bring([])
    check(tables, catalog, ItemFilter(), ItemFilter(allow=("tag-1",)))


def no_memory(*_: Any, **__: Any) -> Any:
    raise torch.OutOfMemoryError


def test_room_for_exclusions_grows_whole_or_not_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs that were captured read what there was before."""
    catalog = tiny_catalog((4, 4), items=6)
    resolved = [catalog.resolve(ItemFilter(exclude=tuple(catalog.item_ids)))]
    exclusions = Exclusions(2, CPU)
    before = exclusions.generation, exclusions._excluded, exclusions.emptied_nodes
    zeros, made = torch.zeros, count()

    def fails_at_the_second_level(*size: Any, **options: Any) -> torch.Tensor:
        if next(made) == 2:
            raise torch.OutOfMemoryError
        return zeros(*size, **options)

    monkeypatch.setattr(torch, "zeros", fails_at_the_second_level)
    with pytest.raises(torch.OutOfMemoryError):
        exclusions.send(resolved)
    assert (exclusions.generation, exclusions._excluded, exclusions.emptied_nodes) == before
    exclusions.send(resolved)
    assert exclusions.generation > before[0]
    assert [len(nodes) for nodes in exclusions.emptied_nodes] == [len(exclusions._excluded)] * 2
