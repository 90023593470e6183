"""What each user did, in memory: packed, numbered, deduplicated by offset, and read without copying."""

from xgr_stream.history.interner import Interner
from xgr_stream.history.packed import PackedUsers
from xgr_stream.history.records import FIRST_LIFE, Applied, Delta, Segment, Stale, user_digest, user_hash
from xgr_stream.history.sources import SourcePosition, Watermark
from xgr_stream.history.store import HistoryStore
from xgr_stream.history.user import HistoryView

__all__ = [
    "FIRST_LIFE",
    "Applied",
    "Delta",
    "HistoryStore",
    "HistoryView",
    "Interner",
    "PackedUsers",
    "Segment",
    "SourcePosition",
    "Stale",
    "Watermark",
    "user_digest",
    "user_hash",
]
