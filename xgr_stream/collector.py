"""Python's collector of cyclic garbage, which stands still while somebody needs it to."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_lock = threading.Lock()
_resting = 0
_ours = False
"""Whether it was on before the first of them."""


@contextmanager
def collector_resting() -> Iterator[bool]:
    """No cyclic garbage is collected within, on any thread, unless somebody asks for it. An application that has
    switched the collector off is left alone, which is what False says."""
    global _resting, _ours
    with _lock:
        if not _resting:
            _ours = gc.isenabled()
        _resting += 1
        gc.disable()
        ours = _ours
    try:
        yield ours
    finally:
        with _lock:
            _resting -= 1
            if not _resting and _ours:
                gc.enable()
