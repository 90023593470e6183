"""Items and their semantic IDs: the trie, what of it is live, and exact filters over it."""

from xgr_stream.catalog.catalog import Catalog
from xgr_stream.catalog.filters import ResolvedFilter
from xgr_stream.catalog.trie import Trie

__all__ = ["Catalog", "ResolvedFilter", "Trie"]
