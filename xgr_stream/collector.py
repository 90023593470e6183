"""Python's collector of cyclic garbage, which stands still while somebody needs it to."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_lock = threading.RLock()
_resting = 0
_ours = False
"""Whether it was on before the first of them."""


@contextmanager
def collector_resting() -> Iterator[bool]:
    """No collection of cyclic garbage begins by itself within, on any thread. Once the last one has left, the collector
    is on again. An application that had switched it off is left alone, which is what False says."""
    global _resting, _ours
    with _lock:
        if not _resting:
            _ours = _ours or gc.isenabled()  # a signal's handler may come between the last one's two steps below
        _resting += 1
        ours = _ours
        if ours:
            gc.disable()
    try:
        yield ours
    finally:
        with _lock:
            _resting -= 1
            if not _resting and _ours:
                gc.enable()
                _ours = False
