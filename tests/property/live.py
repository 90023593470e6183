"""What a catalog that follows updates must be, worked out the obvious way from its version's name."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from hypothesis import strategies as st

from xgr_stream.catalog.catalog import DELTA_ITEMS
from xgr_stream.types import CatalogUpdate


class Place(NamedTuple):
    sid: tuple[int, ...]
    tags: tuple[str, ...]
    available: bool


Base = Mapping[str, Place]


def target(base: Base, update: CatalogUpdate) -> Place | None:
    if update.sid is not None:
        return Place(update.sid, update.tags, update.available)
    place = base.get(update.item_id)
    return None if place is None else place._replace(available=False)


def content(base: Base, log: Sequence[CatalogUpdate], version: str, delta_items: int = DELTA_ITEMS) -> dict[str, Place]:
    """The items that have a place in this version: `<base>`, `<base>+<position>` or `<base>+<merged to>~<position>`."""
    found = re.fullmatch(r"[0-9a-f]{16}\.[0-9a-f]+(?:\+(?:(\d+)~)?(\d+))?", version)
    assert found is not None, version
    position = int(found[2] or 0)
    merged_to = position if found[1] is None else int(found[1])
    places = dict(base)
    for update in log[:merged_to]:
        place = target(base, update)
        if place is None:
            places.pop(update.item_id, None)
        else:
            places[update.item_id] = place
    merged, since = dict(places), log[merged_to:position]
    joined: dict[str, Place] = {}
    for number, update in enumerate(since):
        item_id, wanted = update.item_id, target(base, update)
        if item_id in {later.item_id for later in since[number + 1 :]}:
            continue
        now = merged.get(item_id)
        if now is not None and wanted is not None and wanted[:2] == now[:2]:
            places[item_id] = wanted
            continue
        if now is not None:
            places[item_id] = now._replace(available=False)
        if wanted is not None and len(joined) < delta_items:
            joined[item_id] = wanted
    return places | joined


def updates(
    item_ids: Sequence[str], codes: Sequence[int], tags: Sequence[str], known: Base
) -> st.SearchStrategy[CatalogUpdate]:
    """Of these items: often what they are in the base, with another availability or with other tags; else any semantic
    ID, or none."""
    some_tags = st.lists(st.sampled_from(tags), max_size=2, unique=True).map(tuple)
    anything = st.builds(
        CatalogUpdate,
        item_id=st.sampled_from(item_ids),
        sid=st.one_of(st.none(), st.tuples(*(st.integers(0, most - 1) for most in codes))),
        tags=some_tags,
        available=st.booleans(),
    )
    flips = st.builds(
        lambda item_id, available: CatalogUpdate(item_id, known[item_id].sid, known[item_id].tags, available),
        st.sampled_from(sorted(known) or [""]),
        st.booleans(),
    )
    retagged = st.builds(
        lambda item_id, tags, available: CatalogUpdate(item_id, known[item_id].sid, tags, available),
        st.sampled_from(sorted(known) or [""]),
        some_tags,
        st.sampled_from([True, True, True, False]),
    )
    return st.one_of(anything, flips, retagged) if known else anything
