"""What makes the engine fast, each of which an ablation can switch off. Answers are the same either way."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Switches:
    """For `xgr-stream bench ablation`: nobody else has a reason to change them."""

    staged_attention: bool = True
    """The prefix is read once for all beams of a request. Off: by each beam for itself."""
    early_stop: bool = True
    """Beams that cannot win are not scanned. Off: all legal children are."""
    mask_first: bool = True
    """Only legal children are scored. Off: all codes are scored and sorted, the illegal ones masked."""
    graphs: bool = True
    """A step is one CUDA graph. Off: its kernels are launched one by one."""
    streams: bool = True
    """Appends run on a stream of their own. Off: on the decode's."""
