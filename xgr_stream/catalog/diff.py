"""What it takes to make one catalog's content of another's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np

from xgr_stream.catalog.catalog import Catalog
from xgr_stream.catalog.columns import Place
from xgr_stream.catalog.live import target
from xgr_stream.types import CatalogUpdate

Kind = Literal["new", "gone", "moved", "retagged", "back", "away"]
KINDS: tuple[Kind, ...] = ("new", "gone", "moved", "retagged", "back", "away")
"""Of a changed item: has a place now; has none any more; has another semantic ID; else other tags; else is to be had
again, or no more."""


class Difference(NamedTuple):
    kind: Kind
    update: CatalogUpdate


def places_of(catalog: Catalog) -> dict[str, Place]:
    """Every item that has a place, in row order."""
    rows = np.sort(catalog.trie.items)
    columns = zip(
        rows.tolist(),
        catalog.sids[rows].tolist(),
        catalog.columns.tags.of_rows(rows),
        catalog.available[rows].tolist(),
        strict=True,
    )
    return {catalog.item_ids[row]: Place(tuple(sid), tags, available) for row, sid, tags, available in columns}


def differences(old: Catalog, new: Catalog) -> list[Difference]:
    """The updates that make `old` hold what `new` does, popularity aside: of what its table has and `new` has not, that
    it is not to be had."""
    before, after = places_of(old), places_of(new)
    tombstones = [CatalogUpdate(item_id, None) for item_id in before if item_id not in after]
    found = [
        Difference("gone", update) for update in tombstones if before[update.item_id] != target(old.origin, update)
    ]
    for item_id, place in after.items():
        kind = _kind(before.get(item_id), place)
        if kind is not None:
            found.append(Difference(kind, CatalogUpdate(item_id, *place)))
    return found


def counts(found: Sequence[Difference]) -> Mapping[str, int]:
    """How many of each kind."""
    return {kind: sum(difference.kind == kind for difference in found) for kind in KINDS}


def _kind(before: Place | None, after: Place) -> Kind | None:
    if before is None:
        return "new"
    if before.sid != after.sid:
        return "moved"
    if before.tags != after.tags:
        return "retagged"
    if before.available != after.available:
        return "back" if after.available else "away"
    return None
