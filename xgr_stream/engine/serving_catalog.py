"""Which catalog an engine answers from, and how it changes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import chain, count

import torch

from xgr_kernels.dispatch import launching_on
from xgr_stream.catalog import Catalog, LiveCatalog, Merge
from xgr_stream.config import WindowConfig
from xgr_stream.engine.batches import Batches
from xgr_stream.engine.catalog_merge import CatalogMerge
from xgr_stream.engine.context import ContextReader, NewPlaces, SeenItems
from xgr_stream.engine.legality import LegalityTables
from xgr_stream.engine.prefixes import PrefixBuilder
from xgr_stream.engine.work import Work
from xgr_stream.errors import CatalogError, InvalidUpdate
from xgr_stream.history import HistoryStore
from xgr_stream.model import Model
from xgr_stream.types import CatalogUpdate, ItemFilter

_retokenised = count()


class ServingCatalog:
    """The catalog, its tables on the device, and what reads contexts with it, which change together.

    On the engine's thread, between two batches; `Engine` says what its calls promise. `catalog` may be read on any.
    """

    def __init__(
        self,
        catalog: Catalog,
        model: Model,
        window: WindowConfig,
        history: HistoryStore,
        work: Work,
        prefixes: PrefixBuilder,
        batches: Batches,
    ) -> None:
        self._model = model
        self._window = window
        self._history = history
        self._work = work
        self._prefixes = prefixes
        self._batches = batches
        self._retokenised = False
        """Whether items have other tokens than the base of the catalog gives them."""
        self.use(catalog)

    def use(self, catalog: Catalog) -> None:
        """Answer from this one from now on; without memory for it, from the one before."""
        self._model.tokens.check_catalog(catalog.codes)
        self._work.settle()
        device = self._model.decoder.device
        live = LiveCatalog(catalog)
        with launching_on(device):
            legality = LegalityTables(catalog, device)
        reader = ContextReader(catalog, self._model, self._window, self._history)
        reader.look_up_new_items()  # prefixes that stay hold some, which updates may change
        if device.type == "cuda":
            # What was just made on the default stream is read on the lanes. Not the whole device is waited for: that
            # would spoil the graph that another engine may be capturing.
            torch.cuda.current_stream(device).synchronize()
        self._live, self.catalog, self.legality, self._reader = live, catalog, legality, reader
        key = f"{self._model.version}/{catalog.base_version}"
        if self._retokenised:  # of prefixes that updates had a part in, the base's name says too little
            key += f"/{next(_retokenised)}"
        self._prefixes.use(self._reader, key)
        self._batches.use(catalog, self._reader, self.legality)

    def apply(self, updates: Iterable[CatalogUpdate]) -> None:
        """`update` and a merge, at once."""
        if self._live.merging is not None:
            raise CatalogError("a merge must not be under way, and one is: finish or abandon it before apply_updates")
        if not isinstance(updates, Iterable):
            raise InvalidUpdate(f"updates must be CatalogUpdates, several of them, not {updates!r}")
        listed = list(updates)
        for update in listed:
            if not isinstance(update, CatalogUpdate):
                raise InvalidUpdate(f"updates must be CatalogUpdates, not {update!r}")
            try:
                update.check(self._model.tokens.codes)
            except InvalidUpdate as error:
                raise InvalidUpdate(f"item {update.item_id!r}: {error}") from None
        self.update(listed, self._live.position + len(listed))
        merge = self.begin_merge()
        if merge is not None:
            try:
                merge.run()
                merge.finish()
            except BaseException:  # what waits is for the next call to merge
                merge.abandon()
                raise

    @torch.inference_mode()
    def update(self, updates: Sequence[CatalogUpdate], position: int) -> None:
        """Have these come and go, and what is new or changed of them wait for `join`."""
        self._live.apply(updates, position)

    def join(self) -> None:
        """Have what waits of new and changed items in the catalog's delta, before anything is read with it."""
        self._live.join()
        if self.catalog.delta is not self._reader.delta:
            self._reader.retokenise(self._reader.places_in(self.catalog, self._renumbered(self.catalog)))
            self._retokenised |= self.catalog.delta_retokenises

    def _renumbered(self, catalog: Catalog) -> Iterable[str]:
        """The items of the delta that is read now and of the catalog's: their rows are others there."""
        deltas = (self._reader.delta, catalog.delta)
        return chain.from_iterable(delta.item_ids for delta in deltas if delta is not None)

    @torch.inference_mode()
    def bring_legality(self, item_filter: ItemFilter) -> None:
        """Have what came and went, and the filter's masks, on the device now."""
        self.join()
        with self._work.decode_lane.current():
            self.legality.bring([self.catalog.resolve(item_filter)])

    def begin_merge(self) -> CatalogMerge | None:
        """What merges all that waits now; None if nothing does, or while another merge is under way."""
        merge = self._live.begin()
        if merge is None:
            return None
        return CatalogMerge(merge, self._live, self._reader, self.legality, self._swap_to)

    def _swap_to(self, merge: Merge, legality: LegalityTables, seen: SeenItems) -> Callable[[], None]:
        """What puts this merge in place; all that it takes memory for is done here, before it changes anything."""
        if merge is not self._live.merging:  # `use` came in between
            return lambda: None
        self._live.catch_up(merge)
        places = self._reader.places_in(merge.merged, self._renumbered(merge.merged), seen)
        return partial(self._swap, merge, legality, places)

    def _swap(self, merge: Merge, legality: LegalityTables, places: NewPlaces) -> None:
        self._live.finish(merge)
        self.catalog = self._live.catalog
        with self._work.decode_lane.current():
            self.legality.replace(legality)
        self._reader.retokenise(places)
        self._batches.use(self.catalog, self._reader, self.legality)
        self._retokenised |= bool(merge.retokenised) or self.catalog.delta_retokenises

    def check_integrity(self) -> None:
        """Raise `XgrError` unless the catalog and its tables on the device are consistent."""
        self.join()
        self.catalog.check_integrity()
        with torch.inference_mode(), self._work.decode_lane.current():
            self.legality.check_integrity()
