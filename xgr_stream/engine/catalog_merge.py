"""Updates on their way into the engine's catalog."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from time import sleep

import torch

from xgr_stream.catalog import LiveCatalog, Merge
from xgr_stream.engine.context import ContextReader, SeenItems
from xgr_stream.engine.legality import LegalityTables
from xgr_stream.types import CatalogUpdate

REST_PER_ITEM_S = 5e-10
"""Of the catalog's, between two masks: 10 ms at 20 million, where a mask takes the device 1 ms, and all 15 at once
would make a batch of 22 ms one of 37."""


class CatalogMerge:
    """Makes the next catalog, and the device's copy of it, while the engine goes on with the current one."""

    def __init__(
        self,
        merge: Merge,
        live: LiveCatalog,
        reader: ContextReader,
        current: LegalityTables,
        swap_to: Callable[[Merge, LegalityTables, SeenItems], Callable[[], None]],
    ) -> None:
        self.swapping = False
        """Whether `finish` has begun to change the engine. Until then, whatever fails, the merge can be abandoned."""
        self._merge = merge
        self._live = live
        self._reader = reader
        self._current = current
        self._swap_to = swap_to
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
            self._legality = self._tables(lambda: None)
            return
        stream = torch.cuda.Stream(device)

        def rest() -> None:
            stream.synchronize()
            sleep(REST_PER_ITEM_S * self._merge.merged.num_items)

        with torch.cuda.stream(stream):
            self._legality = self._tables(rest)
        stream.synchronize()

    def handed_over(self) -> Mapping[str, CatalogUpdate]:
        """What came since it began, or since the last call, for `follow`; nothing if it is little enough to finish. On
        the engine's thread."""
        return self._live.handed_over()

    def follow(self, updates: Mapping[str, CatalogUpdate]) -> None:
        """On any thread, after `run`."""
        self._merge.follow(updates)

    def discard(self) -> None:
        """Let go of what is not needed any more, on any thread, after `finish` or `abandon`."""
        self._merge.discard()

    def abandon(self) -> None:
        """Give it up, wherever it failed before it was `swapping`: its items go on waiting, and the next merge may
        begin. On the engine's thread."""
        self._live.abandon(self._merge)

    @torch.inference_mode()
    def finish(self) -> None:
        """Put it in place. On the engine's thread, between two batches, after `run`. It changes nothing if the engine
        was given another catalog since it began."""
        swap = self._swap_to(self._merge, self._legality, self._seen)
        self.swapping = True
        swap()

    def _tables(self, rest: Callable[[], None]) -> LegalityTables:
        tables = LegalityTables(self._merge.merged, self._current.device, like=self._current)
        for key in self._tag_filters:
            rest()
            tables.prepare((key,))
        return tables
