"""A user's history → the tokens of their context."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from xgr_stream.catalog import Catalog
from xgr_stream.config import WindowConfig
from xgr_stream.history import HistoryStore, HistoryView
from xgr_stream.model import Model

TokenArray = NDArray[np.int64]


class ContextReader:
    """Tokenises events under one catalog structure.

    Interned item → catalog row is looked up once per item ever seen; a context is then array indexing alone.
    """

    def __init__(self, catalog: Catalog, model: Model, window: WindowConfig, history: HistoryStore) -> None:
        self._catalog = catalog
        self._tokens = model.tokens
        self._reads_actions = bool(model.settings.actions)
        self._window = window
        self._item_names = history.item_names
        self._action_names = history.action_names
        self._rows: NDArray[np.int32] = np.empty(0, dtype=np.int32)

    @property
    def prompt(self) -> TokenArray:
        return self._tokens.prompt

    @property
    def tail(self) -> TokenArray:
        return self._tokens.tail

    def window_start(self, view: HistoryView) -> int:
        """Number of the first event in context."""
        return max(self._window.start(view.event_count), view.first_number)

    def max_tokens(self, view: HistoryView, first: int) -> int:
        """Tokens that the events from number `first` on can have at most, tail included. Safe on any thread, since
        it looks up no item."""
        return (view.event_count - first) * self._tokens.max_event_tokens + len(self.tail)

    def event_tokens(self, view: HistoryView, first: int) -> TokenArray:
        """Tokens of the events from number `first` on, without prompt and tail. [tokens]"""
        rows = self._catalog_rows(view, first)
        known = rows >= 0
        return self._tokens.encode(self._catalog.sids[rows[known]], self._actions(view, first, known))

    def _actions(self, view: HistoryView, first: int, known: NDArray[np.bool_]) -> Sequence[str | None] | None:
        if not self._reads_actions:
            return None
        names = self._action_names
        return [None if a < 0 else names[a] for a in view.actions[first - view.first_number :][known].tolist()]

    def _catalog_rows(self, view: HistoryView, first: int) -> NDArray[np.int32]:
        """Catalog row of each event's item from number `first` on; -1: not in the catalog."""
        items = view.items[first - view.first_number :]
        if len(items) and int(items.max()) >= len(self._rows):
            self._look_up_new_items()
        return self._rows[items]

    def _look_up_new_items(self) -> None:
        names = self._item_names
        rows = (self._catalog.row(names[i]) for i in range(len(self._rows), len(names)))
        new = np.fromiter((-1 if row is None else row for row in rows), dtype=np.int32)
        self._rows = np.concatenate((self._rows, new))
