"""A user's history → the tokens of their context."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from xgr_stream.catalog import Catalog
from xgr_stream.catalog.beside import in_steps
from xgr_stream.catalog.delta import Delta
from xgr_stream.config import WindowConfig
from xgr_stream.history import HistoryStore, HistoryView
from xgr_stream.model import Model

TokenArray = NDArray[np.int32]

EVENTS_AHEAD = 16
"""Before a window moves, at most."""


class SeenItems(NamedTuple):
    """Items, and those of them that are interned: all that were when there were `interned` items, others perhaps."""

    item_ids: Collection[str]
    numbers: list[int]
    interned: int


NOTHING_SEEN = SeenItems((), [], sys.maxsize)


class NewPlaces(NamedTuple):
    """What interned items are in another catalog."""

    catalog: Catalog
    delta: Delta | None
    """The other catalog's, then."""
    numbers: NDArray[np.intp]
    """[items]"""
    tokens: TokenArray
    """[items, levels]"""
    rows: NDArray[np.int32]
    """[items]"""
    moved: NDArray[np.intp]
    """Those of the items that have another semantic ID now."""


class ContextReader:
    """Tokenises events under one catalog, whose items may get other semantic IDs (`retokenise`).

    An interned item's tokens are looked up once; a context is then array indexing alone. What an item was
    tokenised as is told by a revision, which grows when items change: tokens read at an earlier revision are still
    right unless an item among them changed since.
    """

    def __init__(self, catalog: Catalog, model: Model, window: WindowConfig, history: HistoryStore) -> None:
        self._catalog = catalog
        self.delta = catalog.delta
        """The catalog's delta whose items are read as it says."""
        self._tokens = model.tokens
        self._reads_actions = bool(model.settings.actions)
        self._window = window
        self.events_ahead = min(EVENTS_AHEAD, window.stride or max(1, window.max_events // 2))
        """So many events before a user's window moves, the next one is computed."""
        self._item_names = history.item_names
        self._action_names = history.action_names
        self.prompt: TokenArray = model.tokens.prompt.astype(np.int32)
        self.tail: TokenArray = model.tokens.tail.astype(np.int32)
        self._item_tokens: TokenArray = np.empty((0, catalog.levels), dtype=np.int32)
        """-1: the catalog does not know the item."""
        self._rows: NDArray[np.int32] = np.empty(0, dtype=np.int32)
        self._changed: NDArray[np.int32] = np.empty(0, dtype=np.int32)
        self.revision = 0

    def seen_of(self, item_ids: Sequence[str]) -> SeenItems:
        """Which of these items anybody has seen, on any thread: 100,000 of them take a while."""
        interned = len(self._item_names)
        seen: set[str] = set()
        numbers: list[int] = []
        for part in in_steps(item_ids):
            seen.update(part)
            numbers += [number for item_id in part if (number := self._item_names.get(item_id)) is not None]
        return SeenItems(seen, numbers, interned)

    def places_in(self, catalog: Catalog, item_ids: Iterable[str], seen: SeenItems = NOTHING_SEEN) -> NewPlaces:
        """What these items and those that are `seen` are in `catalog`; all others have the semantic ID and the row that
        they had."""
        names = self._item_names
        later = [number for number in range(seen.interned, len(names)) if names[number] in seen.item_ids]
        own = [number for item_id in item_ids if (number := names.get(item_id)) is not None]
        numbers = np.array(seen.numbers + later + own, np.intp)  # some may be there twice
        if len(numbers):
            self.look_up_new_items()
        tokens, rows = self._places(catalog, [names[number] for number in numbers.tolist()])
        moved = numbers[(self._item_tokens[numbers] != tokens).any(axis=1)]
        return NewPlaces(catalog, catalog.delta, numbers, tokens, rows, moved)

    def retokenise(self, new: NewPlaces) -> None:
        """Read with this catalog from now on. Makes no array."""
        self._catalog, self.delta = new.catalog, new.delta
        if len(new.numbers):
            self._item_tokens[new.numbers], self._rows[new.numbers] = new.tokens, new.rows
        if len(new.moved):
            self._changed[new.moved] = self.revision + 1
            self.revision += 1

    def is_current(self, items: NDArray[np.int32], revision: int) -> bool:
        """Whether these interned items, read at this revision, would be read the same now. Safe on any thread."""
        if revision == self.revision:
            return True
        changed = self._changed
        known = items[items < len(changed)]
        return not bool((changed[known] > revision).any())

    def rows(self, items: NDArray[np.int32]) -> NDArray[np.int32]:
        """The catalog's rows of these interned items, in any order; those that have none are left out."""
        if len(items) and int(items.max()) >= len(self._rows):
            self.look_up_new_items()
        rows = self._rows[items]
        return rows[rows >= 0]

    def window_start(self, view: HistoryView, more: int = 0) -> int:
        """Number of the first event in context; `more`: once the user has had so many events more."""
        return max(self._window.start(view.event_count + more), view.first_number)

    def max_tokens(self, view: HistoryView, first: int) -> int:
        """Tokens that the events from number `first` on can have at most, tail included. Safe on any thread, since
        it looks up no item."""
        return (view.event_count - first) * self._tokens.max_event_tokens + len(self.tail)

    def event_tokens(self, view: HistoryView, first: int) -> TokenArray:
        """Tokens of the events from number `first` on, without prompt and tail. [tokens]"""
        items = view.items_from(first)
        try:
            tokens = self._item_tokens.take(items, axis=0)
        except IndexError:
            self.look_up_new_items()
            tokens = self._item_tokens.take(items, axis=0)
        return self._tokens.of_events(tokens, self._actions(view, first))

    def _actions(self, view: HistoryView, first: int) -> Sequence[str | None] | None:
        if not self._reads_actions:
            return None
        names = self._action_names
        return [None if a < 0 else names[a] for a in view.actions[first - view.first_number :].tolist()]

    def look_up_new_items(self) -> None:
        names = self._item_names
        tokens, rows = self._places(self._catalog, [names[i] for i in range(len(self._item_tokens), len(names))])
        longer = (
            np.concatenate((self._changed, np.zeros(len(rows), np.int32))),
            np.concatenate((self._rows, rows)),
            np.concatenate((self._item_tokens, tokens)),
        )
        self._changed, self._rows, self._item_tokens = longer  # all or none: there may be no memory for the last

    def _places(self, catalog: Catalog, item_ids: Sequence[str]) -> tuple[TokenArray, NDArray[np.int32]]:
        """Tokens [items, levels] and catalog rows [items]; -1 for one that the catalog does not know."""
        rows = catalog.rows(item_ids)
        tokens = self._tokens.of_items(catalog.sids_of(rows))
        tokens[rows < 0] = -1
        return tokens, rows
