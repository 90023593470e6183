"""Updates on their way into the engine's catalog."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from xgr_stream.catalog import LiveCatalog, Merge
from xgr_stream.engine.context import ContextReader, SeenItems
from xgr_stream.engine.legality import LegalityTables
from xgr_stream.types import CatalogUpdate


class CatalogMerge:
    """Makes the next catalog, and the device's copy of it, while the engine goes on with the current one."""

    def __init__(
        self,
        merge: Merge,
        live: LiveCatalog,
        reader: ContextReader,
        current: LegalityTables,
        take_over: Callable[[Merge, LegalityTables, SeenItems], None],
    ) -> None:
        self._merge = merge
        self._live = live
        self._reader = reader
        self._current = current
        self._take_over = take_over
        self._tag_filters = current.kept
        self._legality: LegalityTables
        self._seen: SeenItems

    @torch.inference_mode()
    def run(self) -> None:
        """To be called once, on any thread."""
        self._merge.run()
        self._seen = self._reader.seen_of(self._merge.retokenised)
        device = self._current.device
        if device.type == "cpu":
            self._legality = self._tables(device)
            return
        stream = torch.cuda.Stream(device)
        with torch.cuda.stream(stream):
            self._legality = self._tables(device)
        stream.synchronize()

    def handed_over(self) -> Mapping[str, CatalogUpdate]:
        """What came since it began, or since the last call, for `follow`; nothing if it is little enough to finish. On
        the engine's thread."""
        return self._live.handed_over()

    def follow(self, updates: Mapping[str, CatalogUpdate]) -> None:
        """On any thread, after `run`."""
        self._merge.follow(updates)

    def discard(self) -> None:
        """Let go of what is not needed any more, on any thread, after `finish`."""
        self._merge.discard()

    @torch.inference_mode()
    def finish(self) -> None:
        """Put it in place. On the engine's thread, between two batches, after `run`."""
        self._take_over(self._merge, self._legality, self._seen)

    def _tables(self, device: torch.device) -> LegalityTables:
        tables = LegalityTables(self._merge.merged, device, like=self._current)
        tables.prepare(self._tag_filters)
        return tables
