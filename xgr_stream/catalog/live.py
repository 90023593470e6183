"""A catalog that follows updates: what changes at once, what waits to be merged, and what the version is.

An item that comes or goes is flipped at once. An item that is new, or has another semantic ID or other tags, waits:
`begin` hands out a merge, `Merge.run` makes the next catalog on another thread, `finish` puts it in place. While an
item waits it is not recommended, so that what is served depends on the updates alone:

    every update before `merged_to`; of those from there to `position`, that the items concerned come, go, or wait

which is what the version names: `<the base's version>+<position>`, with `<merged_to>~<position>` while something waits.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from xgr_stream.catalog.catalog import Catalog
from xgr_stream.catalog.merge import Changes, Place, merge
from xgr_stream.catalog.tags import BoolArray
from xgr_stream.errors import CatalogError
from xgr_stream.types import CatalogUpdate


class Merge:
    """One merge. `run` may be called on any thread, once; it disturbs nobody."""

    def __init__(self, catalog: Catalog, available: BoolArray, changes: Changes, position: int) -> None:
        self.changes = changes
        self.position = position
        self.merged: Catalog
        """After `run`."""
        self.retokenised: list[str]
        """After `run`: the items whose semantic ID is another one now."""
        self._old = catalog
        self._available = available
        self._tag_filters = catalog.filters.kept

    def run(self) -> None:
        self.merged = merge(self._old, self._available, self.changes)
        self.merged.filters.keep(self._tag_filters)
        self.retokenised = [i for i in self.changes if self._old.sid(i) != self.merged.sid(i)]


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
        self._waiting: dict[str, Place | None] = {}
        self._since: dict[str, CatalogUpdate] | None = None
        """The updates that came since the merge that runs began."""
        self._base_version: str | None = None
        _ = base.columns.tags.by_row  # once and here, not with the first update

    @property
    def num_waiting(self) -> int:
        """Items that wait for a merge."""
        return len(self._waiting)

    def apply(self, updates: Iterable[CatalogUpdate], position: int) -> None:
        """These updates happened, in this order, and `position` is where the log goes on behind them. Mutates the
        current catalog; filters resolved before are no longer valid."""
        if position < self.position:
            raise CatalogError(f"position must be at least {self.position}, not {position}: updates go one way")
        if self._base_version is None:
            self._base_version = self.base.version
        last = {update.item_id: update for update in updates}  # an item's last one says all of it
        if self._since is not None:
            self._since |= last
        self._apply(last)
        self.position = position
        self._name()

    def begin(self) -> Merge | None:
        """What is to be merged now; None: nothing waits, or a merge runs already."""
        if not self._waiting or self._since is not None:
            return None
        self._since = {}
        return Merge(self.catalog, self.catalog.available.copy(), dict(self._waiting), self.position)

    def finish(self, merge: Merge) -> None:
        """Let the merged catalog be the current one. Takes as long as the updates that came since it began."""
        since, self._since = self._since, None
        self.catalog = merge.merged
        self.merged_to = merge.position
        self._waiting = {}
        self._apply(since or {})
        self._name()

    def _apply(self, last: dict[str, CatalogUpdate]) -> None:
        catalog, waiting = self.catalog, self._waiting
        flips: dict[bool, list[int]] = {True: [], False: []}
        rows = catalog.rows(last)
        sids, tags = catalog.sids[rows].tolist(), catalog.columns.tags.of_rows(rows)
        for item_id, row, sid, tagged, update in zip(last, rows.tolist(), sids, tags, last.values(), strict=True):
            if row >= 0 and update.sid == tuple(sid) and update.tags == tagged:  # nearly always
                waiting.pop(item_id, None)
                flips[update.available].append(row)
                continue
            target = self._target(update)  # None: it is to have no place
            if row < 0 and target is None:
                waiting.pop(item_id, None)
                continue
            if row >= 0:
                flips[False].append(row)
            if target is not None and (target.sid, target.tags) == (tuple(sid), tagged) and row >= 0:
                waiting.pop(item_id, None)
            else:
                waiting[item_id] = target
        for available, changed in flips.items():
            catalog.flip(np.array(changed, np.int32), available)

    def _target(self, update: CatalogUpdate) -> Place | None:
        if update.sid is not None:
            return Place(update.sid, update.tags, update.available)
        row = self.base.row(update.item_id)
        if row is None:
            return None
        (tags,) = self.base.columns.tags.of_rows(np.array([row]))
        return Place(tuple(self.base.sids[row].tolist()), tags, False)

    def _name(self) -> None:
        if not self.position:
            return
        at = f"{self.merged_to}~{self.position}" if self._waiting else f"{self.position}"
        self.catalog.name(f"{self._base_version}+{at}")


def updated(base: Catalog, updates: Sequence[CatalogUpdate], position: int) -> Catalog:
    """The catalog that a worker serves once it has all of these updates. `base` is not to be used any more."""
    live = LiveCatalog(base)
    live.apply(updates, position)
    waiting = live.begin()
    if waiting is not None:
        waiting.run()
        live.finish(waiting)
    return live.catalog
