"""Device memory of the users' prefixes: a pool of pages, snapshots of prefixes in it, and which of them to keep."""

from xgr_stream.cache.pool import PagePool
from xgr_stream.cache.prefix import Draft, UserPrefix
from xgr_stream.cache.prefix_cache import PrefixCache
from xgr_stream.cache.references import ReferenceCounts

__all__ = ["Draft", "PagePool", "PrefixCache", "ReferenceCounts", "UserPrefix"]
