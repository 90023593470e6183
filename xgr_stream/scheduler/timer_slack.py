"""How exactly a thread's waits end, which on Linux decides how long it waits for the interpreter.

A thread that wants the GIL waits for the switch interval, and then for as long as its timer may be late, before it asks
for it: 50 µs unless it is told otherwise. With a device thread that is exact and a loop that is patient, the first has
the GIL soon, and keeps it for what it does before a batch is on its way, some 0.3 ms.
"""

from __future__ import annotations

import threading
from pathlib import Path

EXACT_NS, PATIENT_NS = 1_000, 300_000
"""Of the device thread; of the loop's, whose timers may be as late as that, too."""


def set_timer_slack(nanoseconds: int) -> int | None:
    """Set it for the calling thread; what it was before. None where it can't be set: other systems have none."""
    file = Path(f"/proc/{threading.get_native_id()}/timerslack_ns")
    try:
        before = int(file.read_text())
        file.write_text(str(nanoseconds))
    except OSError:
        return None
    return before
