"""A catalog that follows updates: what changes at once, what waits to be merged, and what the version is.

An item that comes or goes is flipped at once. An item that is new, or has another semantic ID or other tags, waits:
`begin` hands out a merge, `Merge.run` makes the next catalog on another thread, `Merge.follow` takes what came
meanwhile (`handed_over`), `finish` puts it in place, or `abandon` gives it up. Until then such items are served from a
delta beside the catalog, where those that have a place are flipped off, so that what is served depends on the updates
alone:

    every update before `merged_to`; of those from there to `position`, that items have another place or their first,
    the first `DELTA_ITEMS` by their last updates, and that the others come, go, or wait

which is what the version names: `<the base's version>+<position>`, with `<merged_to>~<position>` while something waits.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import compress, islice

import numpy as np

from xgr_stream.catalog.beside import STEP, in_steps
from xgr_stream.catalog.catalog import DELTA_ITEMS, Catalog
from xgr_stream.catalog.columns import Place
from xgr_stream.catalog.merge import merge
from xgr_stream.errors import CatalogError
from xgr_stream.types import CatalogUpdate

Updates = Mapping[str, CatalogUpdate]
"""The last one of each item."""

LEFT_TO_FINISH = 512
"""Updates that `finish` applies itself: 2 to 4 ms. Of 100,000 that came during a merge it would be 0.8 s."""


@dataclass(slots=True)
class Waiting:
    """What each item that waits for a merge is to be."""

    places: dict[str, Place] = field(default_factory=dict)
    """Of those that are to have one, their first or another. In the order of their last updates."""
    gone: dict[str, None] = field(default_factory=dict)
    """Those that have a place now and are to have none."""
    joined: dict[str, Place] = field(default_factory=dict)
    """Those of `places` that the catalog's delta holds."""
    stale: bool = False
    """Whether `places` is not what it was when they joined."""

    def __len__(self) -> int:
        return len(self.places) + len(self.gone)

    def drop(self, updates: Iterable[CatalogUpdate]) -> None:
        """The items of these do not wait, unless what they are now to be is put in again."""
        for update in updates:
            if self.places.pop(update.item_id, None) is not None:
                self.stale = True
            else:
                self.gone.pop(update.item_id, None)


class Merge:
    """One merge. `run` may be called on any thread, once, and `follow` behind it; they disturb nobody."""

    def __init__(
        self, base: Catalog, catalog: Catalog, changes: dict[str, Place | None], position: int, delta_items: int
    ) -> None:
        self.changes = changes
        self.waiting = Waiting()
        """What of the updates that it followed waits for the next merge; after `finish`, what is to be discarded."""
        self.came: dict[str, CatalogUpdate] = {}
        """The updates that came since it began, and that it was not handed. The decoding thread's."""
        self.position = position
        self.merged: Catalog
        """After `run`."""
        self.retokenised: list[str]
        """After `run`: the items whose semantic ID is another one now."""
        self._base = base
        self._old = catalog
        self._delta_items = delta_items

    def run(self) -> None:
        # Not as it was when the merge began: what has come or gone since is said once more by what `follow` and
        # `finish` apply. To copy 20 million is 4 ms, which is here and not between two batches.
        self.merged, moved = merge(self._old, self._old.available[: self._old.num_rows].copy(), self.changes)
        self.retokenised = []
        done = 0
        for item_ids in in_steps(self.changes):
            own = moved[done : done + len(item_ids)]
            self.retokenised += compress(item_ids, own.tolist())
            done += len(item_ids)

    def follow(self, updates: Updates) -> None:
        """These came since it began, or since the last call."""
        for step in in_steps(updates.values()):
            _apply(self._base, self.merged, self.waiting, step)
        self.join()

    def join(self) -> None:
        """Have what waits of what it followed in the delta of `merged`."""
        _join(self.merged, self.waiting, self._delta_items)

    def discard(self) -> None:
        """Let go of what it holds, on any thread, after `finish` or `abandon`, little by little: 100,000 items that go
        at once hold up all threads for 8 to 15 ms, the arrays of 10 million for 20. It is not to be used any more."""
        for held in (self.waiting.places, self.waiting.gone, self.changes):
            while held:
                for _ in range(min(STEP, len(held))):
                    held.popitem()
        arrays = self._old.arrays
        del self._old
        while arrays:
            arrays.pop()


class LiveCatalog:
    """A base and the updates of one log, in their order. All but `Merge.run` belongs to the thread that decodes."""

    def __init__(self, base: Catalog) -> None:
        """`base` is changed by what comes."""
        if base.follows_updates:
            raise CatalogError(f"the base must be a table's own catalog, not {base.version}: load its file again")
        self.base = base
        self.catalog = base
        """The current one; another object after each merge."""
        self.position = 0
        """Of the log: the first update that is not applied yet."""
        self.merged_to = 0
        self._waiting = Waiting()
        self._delta_items = DELTA_ITEMS
        self.merging: Merge | None = None
        """The merge that has begun, until it is finished or abandoned."""
        self._base_version: str | None = None

    @property
    def num_waiting(self) -> int:
        """Items that wait for a merge."""
        return len(self._waiting)

    def apply(self, updates: Iterable[CatalogUpdate], position: int) -> None:
        """These updates happened, in this order, and `position` is where the log goes on behind them. Mutates the
        current catalog, but for its delta (`join`)."""
        if position < self.position:
            raise CatalogError(f"position must be at least {self.position}, not {position}: updates go one way")
        if self._base_version is None:
            self._base_version = self.base.version
        last = _last(updates)
        if self.merging is not None:
            for item_id in last:
                self.merging.came.pop(item_id, None)
            self.merging.came |= last
        _apply(self.base, self.catalog, self._waiting, list(last.values()))
        self.position = position
        self._name()

    def join(self) -> None:
        """Have the items that wait in the current catalog's delta; its version says that they are. To be called before
        a batch, and not for each update: while a worker reads a log of millions, the delta would be made anew every few
        hundred."""
        _join(self.catalog, self._waiting, self._delta_items)

    def begin(self) -> Merge | None:
        """What is to be merged now; None: nothing waits, or a merge runs already."""
        if not self._waiting or self.merging is not None:
            return None
        changes = {**dict.fromkeys(self._waiting.gone), **self._waiting.places}
        self.merging = Merge(self.base, self.catalog, changes, self.position, self._delta_items)
        return self.merging

    def handed_over(self, left: int = LEFT_TO_FINISH) -> Updates:
        """What came since the merge began, or since the last call, for `Merge.follow`; nothing if it is at most `left`
        updates, which `finish` applies."""
        merge = self.merging
        if merge is None or len(merge.came) <= left:
            return {}
        came, merge.came = merge.came, {}
        return came

    def catch_up(self, merge: Merge) -> None:
        """Apply what came and was not handed over to the catalog of the merge that is under way, which is not the
        current one yet: if it fails, the merge can be abandoned."""
        if merge.came:
            merge.follow(merge.came)
            merge.came = {}

    def finish(self, merge: Merge) -> None:
        """Let the catalog of the merge that is under way be the current one, once it has caught up."""
        self.catch_up(merge)
        self.catalog = merge.merged
        merge.waiting, self._waiting = self._waiting, merge.waiting
        self.merged_to = merge.position
        self.merging = None
        self._name()

    def abandon(self, merge: Merge) -> None:
        """Give this merge up, wherever it failed: what waits goes on waiting, for the next one. Nothing changes if it
        is not under way."""
        if merge is self.merging:
            self.merging = None

    def _name(self) -> None:
        if not self.position:
            return
        at = f"{self.merged_to}~{self.position}" if self._waiting else f"{self.position}"
        self.catalog.name(f"{self._base_version}+{at}")


def _last(updates: Iterable[CatalogUpdate]) -> dict[str, CatalogUpdate]:
    """The last one of each item, which says all of it, in their order."""
    listed = list(updates)
    last = {update.item_id: update for update in listed}
    if len(last) < len(listed):
        backwards = dict.fromkeys(update.item_id for update in reversed(listed))
        last = {item_id: last[item_id] for item_id in reversed(backwards)}
    return last


def _join(catalog: Catalog, waiting: Waiting, delta_items: int) -> None:
    """Have the items that wait in the catalog's delta. Mutates both."""
    if not waiting.stale:
        return
    joined = dict(islice(waiting.places.items(), delta_items))
    if joined != waiting.joined:
        catalog.join(joined)
        waiting.joined = joined
    waiting.stale = False


def _apply(base: Catalog, catalog: Catalog, waiting: Waiting, last: Sequence[CatalogUpdate]) -> None:
    """One update of each item. Mutates the catalog and what waits."""
    if waiting:
        waiting.drop(last)
    flips: dict[bool, list[int]] = {True: [], False: []}
    for row, sid, tagged, update in zip(*_places(catalog, last), last, strict=True):
        if row >= 0 and update.sid == sid and update.tags == tagged:  # nearly always
            flips[update.available].append(row)
            continue
        to_be = target(base, update)
        if row >= 0:
            flips[False].append(row)
        if to_be is None:
            if row >= 0:
                waiting.gone[update.item_id] = None
        elif row < 0 or (to_be.sid, to_be.tags) != (sid, tagged):
            waiting.places[update.item_id] = to_be
            waiting.stale = True
    for available, changed in flips.items():
        if changed:
            catalog.flip(np.array(changed, np.int32), available)


def _places(
    catalog: Catalog, updates: Sequence[CatalogUpdate]
) -> tuple[Iterable[int], Iterable[tuple[int, ...]], Iterable[tuple[str, ...]]]:
    """Row, semantic ID and tags of each update's item as they are, the delta aside; of row -1 the others mean
    nothing."""
    if len(updates) == 1:  # as the last item is sold, one by one: 5 µs instead of 20
        row = catalog.own_row(updates[0].item_id)
        row = -1 if row is None else row
        return [row], [tuple(catalog.sids[row].tolist())], [catalog.columns.tags.of_row(row)]
    rows = catalog.own_rows([update.item_id for update in updates])
    return rows.tolist(), zip(*catalog.sids[rows].T.tolist(), strict=True), catalog.columns.tags.of_rows(rows)


def target(base: Catalog, update: CatalogUpdate) -> Place | None:
    """What the update's item is to be; None: it is to have no place. A tombstone leaves what the table `base` says of
    it, not to be had."""
    if update.sid is not None:
        return Place(update.sid, update.tags, update.available)
    row = base.own_row(update.item_id)
    if row is None:
        return None
    return Place(tuple(base.sids[row].tolist()), base.columns.tags.of_row(row), False)


def updated(base: Catalog, updates: Sequence[CatalogUpdate], position: int) -> Catalog:
    """The catalog that a worker serves once it has all of these updates. `base` is not to be used any more."""
    live = LiveCatalog(base)
    live.apply(updates, position)
    waiting = live.begin()
    if waiting is not None:
        waiting.run()
        live.finish(waiting)
    return live.catalog
