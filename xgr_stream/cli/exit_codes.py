"""What a worker's process exits with."""

from __future__ import annotations

from xgr_stream.errors import DeviceLost, Fenced

DEVICE_LOST = 3
"""When its device failed: to be started again, unlike after 1 or 2."""
FENCED = 4
"""When another process takes its partitions' transactions over again and again: to be looked into."""


def exit_code(error: BaseException) -> int:
    """Of a worker that ends with this."""
    return DEVICE_LOST if isinstance(error, DeviceLost) else FENCED if isinstance(error, Fenced) else 1
