"""Masks on CUDA against counting items, and where captured graphs read them."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from tests.property.cases import Case
from tests.property.masks import assert_same_nodes, counted, legal_nodes
from tests.property.oracle import EPSILON, assert_same
from tests.property.users import ask
from xgr_stream.catalog import Catalog, LiveCatalog
from xgr_stream.catalog.catalog import DELTA_ITEMS
from xgr_stream.engine import legality
from xgr_stream.engine.exclusions import ROOM
from xgr_stream.engine.legality import MAX_MASKS, LegalityTables
from xgr_stream.testing.shapes import random_catalog
from xgr_stream.types import CatalogUpdate, ItemFilter

pytestmark = pytest.mark.gpu

CUDA = torch.device("cuda")
TAGS = 12


def drawn(rng: random.Random, catalog: Catalog) -> ItemFilter:
    def tags() -> list[str | tuple[str, ...]]:
        names = [f"tag-{rng.randrange(TAGS)}" for _ in range(rng.choice([0, 0, 1, 2]))]
        return [name if rng.random() < 0.7 else (name, f"more-{rng.randrange(3)}") for name in names]

    excluded = rng.sample(range(catalog.num_items), rng.choice([0, 1, 40, 3000]))
    if rng.random() < 0.3:  # whole subtrees
        first = rng.randrange(catalog.num_items)
        excluded += range(first, min(first + 500, catalog.num_items))
    return ItemFilter.of([catalog.item_ids[row] for row in set(excluded)], tags(), tags())


def check(tables: LegalityTables, catalog: Catalog, filters: list[ItemFilter]) -> None:
    resolved = [catalog.resolve(one) for one in filters]
    assert_same_nodes(legal_nodes(tables, resolved), [counted(catalog, one) for one in resolved])


def catalog_of(items: int, codes: tuple[int, ...]) -> Catalog:
    """Items of one or two tags, some with the SID of another."""
    plain = random_catalog(codes, items, tags=TAGS)
    tags = [
        [tag, f"more-{row % 3}"] if row % 2 else [tag]
        for row, (tag,) in enumerate(plain.columns.tags.of_rows(np.arange(items)))
    ]
    return Catalog.from_table({"item_id": list(plain.item_ids), "sid": plain.sids.tolist(), "tags": tags}, codes=codes)


@pytest.mark.parametrize("codes", [(5000,), (64, 64), (16, 40, 30), (6, 6, 6, 6)])
def test_masks_follow_batches_flips_and_merges(codes: tuple[int, ...]) -> None:
    rng = random.Random(len(codes))
    live = LiveCatalog(catalog_of(6000, codes))
    tables = LegalityTables(live.catalog, CUDA)

    def places() -> list[int]:
        read = (*tables._of_catalog, *tables.exclusions.emptied_nodes, tables.exclusions._excluded)
        return [tensor.data_ptr() for tensor in read]

    before = places()
    generation, position = tables.generation, 0
    for step in range(12):
        catalog = live.catalog
        check(tables, catalog, [drawn(rng, catalog) for _ in range(rng.randint(1, 6))])
        changed = [catalog.item_ids[row] for row in rng.sample(list(catalog.trie.items), rng.choice([1, 1, 30, 2000]))]
        rows = catalog.own_rows(changed)  # what moved comes back
        present = rng.random() < 0.5
        flips = [
            CatalogUpdate(item_id, tuple(sid), tags, present)
            for item_id, sid, tags in zip(
                changed, catalog.sids[rows].tolist(), catalog.columns.tags.of_rows(rows), strict=True
            )
        ]
        new = [
            CatalogUpdate(f"new-{rng.randrange(90)}", tuple(rng.randrange(most) for most in codes), ("tag-1",))
            for _ in range(20)
        ]
        for updates in (flips, new) if step % 3 == 2 else (flips,):
            position += len(updates)
            live.apply(updates, position)
            live.join()
        tables.check_integrity()
        if step % 3 == 2 and (merge := live.begin()) is not None:
            merge.run()
            other = LegalityTables(merge.merged, CUDA, like=tables)
            other.prepare(tables.kept)
            position += len(flips)
            live.apply(flips, position)
            live.finish(merge)
            tables.replace(other)
    tables.check_integrity()
    assert tables.generation == generation
    assert places() == before


@pytest.mark.parametrize("room", ["ample", "for a delta alone"])
@pytest.mark.parametrize("normalizer", ["level", "legal"])
def test_captured_decodes_find_new_and_moved_items_and_what_is_merged_as_a_cpu_does(
    normalizer: str, room: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With beams for all nodes, whose answers no rounding changes, and with few; in batches of two. Captured before
    there is a delta; draws are not captured. Without more room than a delta takes all moves with each merge."""
    if room != "ample":
        monkeypatch.setattr(legality, "_with_room", lambda size, device: -(-(size + DELTA_ITEMS) // 16) * 16)
    rng = random.Random(1)
    case = Case(
        (16, 9, 16), 300, 1, framed=False, page_size=16, max_batch_tokens=512, max_events=16, normalizer=normalizer,
        model_config={"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64, "hidden_size": 64},
    )  # fmt: skip
    engines = [case.engine(8 << 20, device=device) for device in (CUDA.type, "cpu")]
    for engine in engines:
        engine.append("ann", ["item-1", "new-1", "item-2"])
        engine.append("bob", ["item-3", "item-4"])
        for beams, k in ((1000, 1000), (40, 5)):
            ask(engine, *((user, k, beams) for user in ("ann", "bob")))
    generations = {engines[0]._serving.legality.generation}
    position, known, merges = 0, case.items["item_id"], [None, None]
    for step in range(8):
        ids = [f"launched-{step}", *(f"new-{rng.randrange(30)}" for _ in range(rng.choice([0, 12])))]
        ids += rng.sample(known, rng.choice([0, 12]))
        sids = [tuple(rng.randrange(most) for most in case.codes) for _ in ids]
        updates = [CatalogUpdate(*place, ("red",), rng.random() < 0.8) for place in zip(ids, sids, strict=True)]
        position += len(updates)
        for engine in engines:
            engine.update_catalog(updates, position)
            engine.bring_legality()
            assert engine.catalog.delta is not None
        excluded = [*rng.sample(known, 40), f"new-{rng.randrange(30)}"]
        for wanted in (ItemFilter(), ItemFilter.of(excluded, ["red"], []), ItemFilter.of([], [], ["red"])):
            for beams, k in ((1000, 1000), (40, 5)):
                batch = [(user, k, beams, wanted) for user in ("ann", "bob")]
                for mine, theirs in zip(*(ask(engine, *batch) for engine in engines), strict=True):
                    assert mine.status == theirs.status
                    assert mine.catalog_version == theirs.catalog_version
                    assert_same(mine.items, theirs.items, len(theirs.items))
        drawn, expected = (
            {item.item_id: item.score for item in engine.recommend("ann", 1000, beam_width=1000, temperature=1.0)}
            for engine in engines
        )
        assert drawn == pytest.approx(expected, abs=EPSILON)
        scores, expected_scores = (engine.score("ann", [*known, *ids]) for engine in engines)
        assert scores == pytest.approx(expected_scores, abs=EPSILON)
        for engine in engines:
            engine.check_integrity()
        generations.add(engines[0]._serving.legality.generation)
        if step % 4 == 1:
            merges = [engine.begin_merge() for engine in engines]
            for merge in merges:
                merge.run()
        elif step % 4 == 2:
            for merge in merges:
                merge.finish()
    assert (len(generations) == 1) == (room == "ample")  # all was written where the graphs read it


def test_what_must_move_says_so() -> None:
    catalog = catalog_of(20_000, (64, 64, 64))
    tables = LegalityTables(catalog, CUDA)
    generation = tables.generation
    check(
        tables,
        catalog,
        [ItemFilter(allow=(f"tag-{i % TAGS}",), deny=(f"more-{i // TAGS}",)) for i in range(MAX_MASKS * 2)],
    )
    assert tables.generation > generation
    generation = tables.generation
    firsts = [i * 1000 % 11_000 for i in range(ROOM // 9000 + 1)]
    many = [ItemFilter.of(catalog.item_ids[first : first + 9000]) for first in firsts]
    check(tables, catalog, many)
    assert tables.generation > generation
    tables.check_integrity()


def test_nothing_waits_for_the_device() -> None:
    catalog = catalog_of(20_000, (64, 64, 64))
    tables = LegalityTables(catalog, CUDA)
    wanted = [ItemFilter.of(catalog.item_ids[:500], [], []), ItemFilter.of([], ["tag-1"], ["more-1"]), ItemFilter()]
    tables.bring([catalog.resolve(one) for one in wanted])  # kernels are compiled
    catalog.set_available(catalog.item_ids[:1], False)
    tables.bring([])
    live = LiveCatalog(catalog)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for count in (1, 300, 9000):
            catalog.set_available(catalog.item_ids[7 : 7 + count], False)
            catalog.set_available(catalog.item_ids[7 : 7 + count], True)
            resolved = [catalog.resolve(one) for one in (*wanted, ItemFilter(allow=(f"tag-{count % 5 + 2}",)))]
            tables.bring(resolved)
            tables.exclusions.send(resolved)
        for position, count in enumerate((1, 300, 0), start=1):  # a delta that grows and shrinks
            new = [CatalogUpdate(f"new-{n}", (n % 64, 1, 1) if n < count else None, ("tag-1",)) for n in range(300)]
            live.apply(new, position)
            live.join()
            tables.bring([catalog.resolve(one) for one in wanted])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    tables.check_integrity()
