"""Memory of the users' prefixes: a pool of pages on the device, snapshots of prefixes in it, which of them to keep, and
copies of those that are not kept, in host memory and in a file."""

from xgr_stream.cache.arena import HostArena
from xgr_stream.cache.file_tier import FileTier
from xgr_stream.cache.host_tier import Demotion, HostCopy, HostTier
from xgr_stream.cache.page_file import PageFile
from xgr_stream.cache.pool import PagePool, as_words
from xgr_stream.cache.prefix import Draft, UserPrefix, ahead_of
from xgr_stream.cache.prefix_cache import PrefixCache
from xgr_stream.cache.references import ReferenceCounts, SlotCounts
from xgr_stream.cache.worth import DecayedRate, GreedyDual, LeastRecentlyUsed, Worth

__all__ = [
    "DecayedRate",
    "Demotion",
    "Draft",
    "FileTier",
    "GreedyDual",
    "HostArena",
    "HostCopy",
    "HostTier",
    "LeastRecentlyUsed",
    "PageFile",
    "PagePool",
    "PrefixCache",
    "ReferenceCounts",
    "SlotCounts",
    "UserPrefix",
    "Worth",
    "ahead_of",
    "as_words",
]
