"""Items and their semantic IDs: the trie, what of it is live, exact filters over it, and how it changes."""

from xgr_stream.catalog.catalog import Catalog
from xgr_stream.catalog.filters import ResolvedFilter
from xgr_stream.catalog.live import LiveCatalog, Merge
from xgr_stream.catalog.trie import Trie

__all__ = ["Catalog", "LiveCatalog", "Merge", "ResolvedFilter", "Trie"]
